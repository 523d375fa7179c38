"""The editor's format becomes exactly what the real editor exports, or is refused with the node named.

The exports are real: see tests/data/editor-pairs/README.md and tests/data/real-workflows/README.md.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from settee.client.client_errors import UsageError
from settee.client.convert import is_editor_format, widgets
from settee.comfyui.graph import with_values
from settee.comfyui.rewrite import filled_prefixes
from tests.support.editor_files import (
    API_NODES,
    OBJECT_INFO,
    PAIRS,
    REAL,
    comparable,
    converted,
    exported,
    pair,
    real,
    refusal,
)

#: Pairs that all editors agree about and that are refused all the same, with a word of why.
REFUSED = {
    "bypass_any": "3 VAEDecode is bypassed, and its output 0",
    "input_not_of_the_class": '2 ImageInvert has a linked input "other"',
    "link_of_another_type": "3 ImageBlend has an input image2 of type IMAGE, fed by an output of type MASK",
    "only_3d": "1 Load3D has an input image of type LOAD_3D",
    "prefix_node": "9 SaveImage has the pattern",
    "primitive_behind_reroute": "1 EmptyImage has an input width that the primitive 2",
    "primitive_float_off_step": '2 PrimitiveNode has the value "0.123"',
    "primitive_off_step": '2 PrimitiveNode has the value "99"',
    "primitive_without_value": "the primitive 2 feeds, which has no INT",
    "remote_choices": "1 LoadImageOutput has an input image whose choices",
    "subgraph_one_input_two_widgets": '57 subgraph "Square" feeds several widgets from "side"',
    "subgraph_promoted_comment": '57:4 CLIPTextEncode in subgraph "Words" has a comment',
    "subgraph_promoted_through_bypass": "57:5 EmptyImage in subgraph",
    "subgraph_twice_one_without_values": '58 subgraph "Scaled" has no values',
    "subgraph_values_short": '57 subgraph "Scaled" has another number of values (1)',
    "text_group": "3 CLIPTextEncode has a dynamic prompt for text",
    "values_empty": "1 EmptyImage has no value in the file for width",
    "values_fraction": '1 EmptyImage has "64.5" for width',
    "values_list": '1 EmptyImage has "[1, 2]" for width',
    "values_long": "1 EmptyImage has more values in the file (5)",
    "values_missing": "1 EmptyImage has no value in the file for width",
    "values_null": '1 EmptyImage has "null" for height',
    "values_of_old_ksampler": '7 KSampler has "20" after seed',
    "values_sampler_renamed": '7 KSampler has the old name "sample_euler"',
    "values_short": "1 EmptyImage has no value in the file for batch_size",
    "values_text": '1 EmptyImage has "64" for width',
}


# --- API nodes; the other published workflows: test_client_convert_published.py ---


@pytest.mark.parametrize("name", [name for name in REAL if name.startswith(("api_", "n_api_"))])
def test_api_nodes_are_exported_as_the_editor_does(name: str) -> None:
    editor = real(name)
    if name == "n_api_tripo_image_to_model":
        # A later version of the node was saved, with an output that this server's does not have.
        assert "35 TripoImageToModelNode has an output 2" in refusal(editor, OBJECT_INFO | API_NODES)
    else:
        assert comparable(converted(editor, OBJECT_INFO | API_NODES)) == exported(name)


# --- hand-made files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in REFUSED and "api" in pair(name)])
def test_a_file_is_exported_as_all_editors_do(name: str) -> None:
    workflow = converted(pair(name)["editor"], OBJECT_INFO)
    # The day of the recordings.
    workflow = with_values(workflow, filled_prefixes(workflow, time.strptime("2026-11-22", "%Y-%m-%d")))
    assert comparable(workflow) == pair(name)["api"]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_not_certain_is_refused_with_its_node(name: str) -> None:
    assert "api" in pair(name)
    assert REFUSED[name] in refusal(pair(name)["editor"])


@pytest.mark.parametrize("name", [name for name in PAIRS if "exports" in pair(name) and name != "ids_twice"])
def test_what_editors_disagree_about_is_refused_with_its_node(name: str) -> None:
    editor = pair(name)["editor"]
    ids = {str(node["id"]) for node in editor["nodes"]}
    assert refusal(editor).split("converted: node ")[1].split()[0].split(":")[0] in ids


def test_an_id_that_is_twice_in_the_file_stays() -> None:
    workflow = comparable(converted(pair("ids_twice")["editor"], OBJECT_INFO))
    assert workflow == pair("ids_twice")["exports"]["1.27.10"]
    # Late editors give the inner node another id, and that is all.
    renamed = json.dumps(pair("ids_twice")["exports"]["1.58.1"]).replace("57:58", "57:9")
    assert workflow == json.loads(renamed)


def test_an_editor_that_reads_no_outer_values_must_not_have_saved_any() -> None:
    editor = pair("subgraph_values_of_its_own")["editor"]
    assert converted(editor | {"extra": {"frontendVersion": "1.40.10"}}, OBJECT_INFO)
    assert "57 subgraph" in refusal(editor | {"extra": {"frontendVersion": "1.42.10"}})
    alike = pair("subgraph_values_alike")["editor"]
    assert converted(alike | {"extra": {"frontendVersion": "1.42.10"}}, OBJECT_INFO)


def test_values_by_name_must_be_those_by_place() -> None:
    editor = pair("plain")["editor"]
    node = next(node for node in editor["nodes"] if node["type"] == "EmptyImage")
    named = {"width": 64, "height": 48, "batch_size": 1, "color": 255}
    node["widgets_values_named"] = named
    assert comparable(converted(editor, OBJECT_INFO)) == pair("plain")["api"]
    node["widgets_values_named"] = named | {"height": 49}
    assert '1 EmptyImage has "48" for height by its place' in refusal(editor)


def test_titles_are_kept_and_ids_are_in_natural_order() -> None:
    workflow = converted(pair("titles")["editor"], OBJECT_INFO)
    assert [node["_meta"]["title"] for node in workflow.values()] == ["My canvas", "Save Image"]
    assert list(converted(pair("nested")["editor"], OBJECT_INFO)) == ["1", "9", "57:16:5", "57:16:6", "57:17"]


# --- what no pair holds ---------------------------------------------------------------------------------------


def custom(module: Any) -> dict[str, Any]:
    return OBJECT_INFO | {"ImageInvert": OBJECT_INFO["ImageInvert"] | {"python_module": module}}


def test_custom_nodes_need_a_server_that_says_they_bring_no_script() -> None:
    editor = pair("plain")["editor"]
    for module in ("custom_nodes.pack", None):
        assert "node 2 ImageInvert is of " in refusal(editor, custom(module))
    scripts = ["/extensions/core/a.js", "/extensions/other/b.js"]
    workflow = converted(editor, custom("custom_nodes.pack"), extensions=scripts)
    assert comparable(workflow) == pair("plain")["api"]
    for extensions in (["/extensions/pack/c.js"], ["/extensions/pack/js/deep/c.js", "/extensions/core/a.js"]):
        with pytest.raises(UsageError, match="2 ImageInvert is of the custom nodes pack, whose editor script"):
            converted(editor, custom("custom_nodes.pack"), extensions=extensions)


@pytest.mark.parametrize("kind", ["workflow>My group", "workflow/My group", "GetNode", "SetNode"])
def test_nodes_that_only_an_editor_resolves_are_refused(kind: str) -> None:
    editor = pair("plain")["editor"]
    editor["nodes"][-1]["type"] = kind
    assert f"node {editor['nodes'][-1]['id']} {kind}" in refusal(editor)


def test_links_made_by_an_extension_are_refused() -> None:
    editor = pair("plain")["editor"] | {"extra": {"ue_links": [{"downstream": 9}]}}
    assert "Use Everywhere" in refusal(editor)


def test_what_is_no_editor_file_is_told() -> None:
    assert is_editor_format(pair("plain")["editor"])
    assert not any(is_editor_format(data) for data in (pair("plain")["api"], {}, [], None, "nodes", {"nodes": {}}))
    assert 'no list of "nodes"' in refusal({})
    assert "no node that runs" in refusal({"nodes": [], "links": []})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a (red:1.2) fox", "a (red:1.2) fox"),
        ("a|b }", "a|b }"),
        ("a // b\nc", "a \nc"),
        ("a // b\rc // d\u2028e", "a \rc \u2028e"),
        ("a /* b\n // c */ d", "a  d"),
        ("a /* b", "a /* b"),
        (r"\{a\|b\}", "{a|b}"),
        (r"C:\new", r"C:\new"),
        ("{a|b}", None),
        ("{a", None),
        (r"\\{a|b}", None),
    ],
)
def test_dynamic_prompts(text: str, said: str | None) -> None:
    assert widgets.dynamic(text) == said
