"""Patterns in the prefixes of file names, as the editor fills them in (its exports: test_client_convert.py)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from settee.comfyui.graph import Place
from settee.comfyui.rewrite import filled_prefixes

NOW = time.strptime("2026-03-05 07:08:09", "%Y-%m-%d %H:%M:%S")


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, "_meta": {"title": title}}


GRAPH = {
    "3": node("KSampler", "Base", seed=["20", 0], cfg=7.5, denoise=1.0, steps=["21", 0]),
    "4": node("KSampler", "Refiner", seed=8),
    "5": node("CLIPTextEncode", "3", text='a/b\\c:d*e?"f"<g>|h\x07i', flag=True, nothing=None),
    "20": node("PrimitiveInt", value=77),
    "21": node("Math", a=1),
}


def filled(prefix: Any) -> Any:
    found = filled_prefixes({**GRAPH, "9": node("SaveImage", filename_prefix=prefix)}, NOW)
    return found.get(Place("9", "filename_prefix"), prefix)


@pytest.mark.parametrize(
    ("prefix", "becomes"),
    [
        ("%date:yyyy-MM-dd%/fox", "2026-03-05/fox"),
        ("%date:yy-M-d_h-m-s%", "26-3-5_7-8-9"),
        ("%date:hh-mm-ss%%date:yyy%", "07-08-09yyy"),
        ("%date:%x", "x"),
        ("%KSampler.cfg%_%KSampler.denoise%", "7.5_1"),
        ("%KSampler.seed%", "77"),
        ("%Refiner.seed%", "8"),
        ("%3.text%", "a_b_c_d_e__f__g__h_i"),
        ("%CLIPTextEncode.flag%", "true"),
    ],
)
def test_dates_and_values_of_nodes_are_filled_in(prefix: str, becomes: str) -> None:
    assert filled(prefix) == becomes


@pytest.mark.parametrize(
    "prefix",
    [
        "fox",
        "%width%x%height%_%year%",
        "50% and 60%",
        "100%",
        "%date%",
        # The editor takes this for a node's value.
        "%date:yyyy.MM%",
        "%Nobody.seed%",
        "%KSampler.sead%",
        "%KSampler.steps%",
        "%CLIPTextEncode.nothing%",
        ["21", 0],
        7,
    ],
)
def test_what_names_no_value_stays(prefix: Any) -> None:
    assert filled(prefix) == prefix


def test_only_prefixes_of_file_names_are_filled_in() -> None:
    assert filled_prefixes({"1": node("CLIPTextEncode", text="%date:yyyy%")}, NOW) == {}
