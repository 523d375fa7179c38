"""The command line's options, and what is said to clumsy hands before anything is sent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from settee.client import cli
from settee.client.client_errors import ClientError
from tests.support.client_command import INVERT, PICTURE
from tests.support.rig import empty

#: Nobody is there, and nobody is asked.
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("RUNPOD_ENDPOINT_ID", "RUNPOD_API_KEY", "ENCRYPTION_KEY", "BUCKET_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "quick.json").write_text(json.dumps(empty()))
    (tmp_path / "slow.json").write_text(json.dumps(empty()))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit code and the one document of a command with --json."""
    capsys.readouterr()
    code = cli.main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


SLIPS: dict[str, tuple[tuple[object, ...], str]] = {
    "a value like an option": (("quick.json", "--prompt", "-fox"), "--prompt=-VALUE"),
    "a picture before the workflow": (("--img", "quick.json", PICTURE), "put the workflow first"),
    "a glob that matched nothing": ((INVERT, "--img", "nowhere*.png"), "nowhere*.png"),
    "a folder for a workflow": ((".",), "is a folder"),
    "no workflow at all": ((), "name a workflow"),
    "a picture for a workflow": ((PICTURE,), "holds no workflow"),
    "a folder that cannot be made": (("quick.json", "--out", "/proc/nowhere"), "--out"),
    "a file for a folder": (("quick.json", "--out", "quick.json"), "--out"),
    "a workflow and a job": (("quick.json", "--resume", "x"), "takes no workflow"),
    "many and one": (("quick.json", "--repeat", "2", "--detach"), "--detach"),
    "stdin for many": (("-", "--repeat", "2"), "stdin"),
    "no times": (("quick.json", "--repeat", "0"), "whole number"),
    "too many times": (("quick.json", "--repeat", "100000000"), "whole number"),
    "a key file that is none": (("quick.json", "--key-file", "slow.json"), "slow.json"),
    "a name too long": (("x" * 5000,), "no file"),
    "no batch": (("quick.json", "--batch", "nowhere.jsonl"), "cannot be read"),
    "no job": (("--resume", "../../etc"), "not a job id"),
    "no job at all": (("--resume", ""), "name a workflow"),
    "a slip in an address": (("quick.json", "--url", "localhost:8000"), "http://"),
    "an endpoint without a key": (("quick.json", "--endpoint", "abc"), "RUNPOD_API_KEY"),
    "two places": (("quick.json", "--endpoint", "abc", "--comfy", NOWHERE), "not allowed with"),
    "standard output twice": (("quick.json", "--save-workflow", "-"), "both write to standard output"),
    "two workflows": (("quick.json", "slow.json"), "unrecognized arguments: slow.json"),
    "a shortened option": (("quick.json", "--neg", "x"), "unrecognized arguments"),
    "a seed that is not a number": (("quick.json", "--seed", "-2"), "whole number"),
    "one seed for many": (("quick.json", "--seed", "1", "--repeat", "2"), "--seed"),
    "waiting forever": (("quick.json", "--timeout", "inf"), "number of seconds"),
    "a ComfyUI and /runsync": (("quick.json", "--comfy", NOWHERE, "--sync", "--out", "o"), "--sync"),
    "a batch of nothing": (("quick.json", "--batch", "/dev/null"), "no jobs"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_a_line_that_helps(capsys: pytest.CaptureFixture[str], slip: str) -> None:
    arguments, words = SLIPS[slip]
    code, document = said(capsys, *arguments)
    assert (code, words in document["error"]) == (2, True), document
    assert "\n" not in document["error"] or "batch" in document["error"]


@pytest.mark.parametrize(
    "arguments",
    [("--img", "a.png", "w.json"), ("--url", NOWHERE, "--img", "a.png", "w.json"), ("--img=a.png", "w.json")],
)
def test_the_workflow_behind_its_pictures(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    shutil.copy(PICTURE, "a.png")
    shutil.copy(INVERT, "w.json")
    code, document = said(capsys, *arguments, "--dry-run")
    assert (code, document["changes"][0]["value"]) == (0, "1_a.png"), document


def test_what_is_ambiguous_behind_pictures_is_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("--img", "1.json", "2.json"), ("--img", "1.json", "--mask", "2.json"), ("--img", "12=w.json")):
        code, document = said(capsys, *arguments)
        assert (code, "put the workflow first" in document["error"]) == (2, True), document


def test_numbers_that_json_has_no_word_for_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    from settee.client import streams

    streams.prepare()
    streams.document({"a": float("nan"), "b": [float("inf"), 1.5], "c": "\udcff ö"})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": "\udcff ö"}


def test_a_strangers_words_do_not_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    error = ClientError("node 3\x1b]0;gone\x07 failed:\n  \x9b2Jé, \u202e日本", code="x")
    assert cli.failed(error, "client.py") == 1
    assert capsys.readouterr().err == "client.py: node 3 ]0;gone  failed:\n   2Jé,  日本 [x]\n"


def test_an_optional_package_that_is_missing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a laptop with nothing but the client."""
    import sys

    for name in ("cryptography", "cryptography.fernet", "boto3"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["keygen", "key.txt"]) == 0
    code, document = said(capsys, "quick.json", "--url", NOWHERE, "--key-file", "key.txt")
    assert (code, "settee[sealed]" in document["error"]) == (2, True), document
