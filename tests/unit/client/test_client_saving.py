"""What comes back, saved: under names of our own, whole or not at all, and never over what was there."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base import json_io
from settee.client.client_errors import ClientError, JobFailed, NetworkError, UsageError
from settee.client.job_outputs import KINDS, MAX_BYTES, Output, outputs_of
from settee.client.saving import Result, Saved, make_folder, plain_name
from settee.client.saving.part_file import Damaged, open_part, write_base64

DATA = bytes(range(256)) * 5


def output(filename: str = "a.png", data: bytes | str = DATA, **keys: Any) -> Output:
    text = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return Output(**{"kind": "images", "filename": filename, "type": "base64", "data": text, **keys})


def result(*outputs: Output, **keys: Any) -> Result:
    return Result(job_id="job-1", outputs=outputs, **keys)


def files(folder: Path) -> dict[str, bytes]:
    """Everything in it, hidden files too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- what is written ------------------------------------------------------------------------------------------


def test_every_output_is_saved_in_the_results_order(tmp_path: Path) -> None:
    told: list[Saved] = []
    given = [
        output("a.png", size=len(DATA), sha256=hashlib.sha256(DATA).hexdigest().upper()),
        output("node_5.txt", "größer\r\n\ud800", kind="texts", type="text", size=3, sha256="of other bytes"),
    ]
    saved = result(*given).save(tmp_path / "new" / "out", on_saved=told.append)
    assert [(one.path.name, one.output) for one in saved] == [("a.png", given[0]), ("node_5.txt", given[1])]
    assert told == saved
    assert files(tmp_path / "new" / "out") == {"a.png": DATA, "node_5.txt": "größer\r\n?".encode()}
    assert (saved[0].size, saved[0].sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())


def test_nothing_to_save_makes_no_folder(tmp_path: Path) -> None:
    assert result().save(tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        base64.urlsafe_b64encode(DATA).decode(),
        base64.encodebytes(DATA).decode(),
        base64.b64encode(DATA).decode().rstrip("="),
        "data:image/png;base64," + base64.b64encode(DATA).decode(),
        " \n" + base64.b64encode(DATA).decode() + "\n\n",
    ],
    ids=["url-safe", "lines", "no padding", "data URI", "spaces"],
)
@pytest.mark.parametrize("piece", [4, 64, 10_000])
def test_base64_of_every_shape(tmp_path: Path, text: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_io, "STEP", piece)
    with open_part(tmp_path) as part:
        write_base64(text, part)
        part.finish()
        assert part.path.read_bytes() == DATA


@pytest.mark.parametrize("text", ["A", "AAA=A", "AA==AAAA", "A===", "AA=A=A==", "AÄAA", "AA.A", "data:x"])
@pytest.mark.parametrize("piece", [4, 100])
def test_broken_base64_is_refused(tmp_path: Path, text: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_io, "STEP", piece)
    with open_part(tmp_path) as part, pytest.raises(Damaged):
        write_base64(text, part)
    assert files(tmp_path) == {}


def test_base64_is_decoded_without_a_second_copy(tmp_path: Path) -> None:
    given = result(output(data=b"\0" * 24_000_000))
    tracemalloc.start()
    try:
        given.save(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("wrong", [{"size": 7}, {"sha256": "0" * 64}])
def test_what_is_not_as_the_worker_said_is_not_saved(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(JobFailed, match=r"^a\.png was not saved: "):
        result(output(**wrong)).save(tmp_path)
    assert files(tmp_path) == {}


def test_a_path_on_the_volume_is_named(tmp_path: Path) -> None:
    there = output("film.mp4", "/runpod-volume/results/job-1/film.mp4\x1b[2J", type="path")
    with pytest.raises(JobFailed, match=r"film\.mp4 was not saved.*network volume, as /runpod-volume/results/job-1/"):
        result(there).save(tmp_path)


def test_one_failure_takes_no_other_output_with_it(tmp_path: Path) -> None:
    given = [
        output("a.png"),
        output("b.png", "broken!"),
        output("c.mp4", "/volume/c.mp4", type="path"),
        output("d.png"),
        *outputs_of({"images": [{"filename": "e.png", "type": "carrier_pigeon", "data": ""}]}),
    ]
    told: list[Saved] = []
    with pytest.raises(ClientError) as caught:
        result(*given).save(tmp_path, on_saved=told.append)
    assert caught.value.message.startswith("3 of 5 outputs were not saved:\n  b.png: ")
    assert "\n  c.mp4: " in caught.value.message
    assert (type(caught.value), caught.value.job_id) == (JobFailed, "job-1")
    assert caught.value.details["saved"] == [str(tmp_path / name) for name in ("a.png", "d.png")]
    assert [one["file"] for one in caught.value.details["not_saved"]] == ["b.png", "c.mp4", "e.png"]
    assert [one.path.name for one in told] == ["a.png", "d.png"]
    assert files(tmp_path) == {"a.png": DATA, "d.png": DATA}


def test_one_that_could_be_fetched_later_makes_it_a_network_error(tmp_path: Path) -> None:
    gone = output("b.png", "http://[broken", type="s3_url")
    with pytest.raises(NetworkError, match="--resume job-1"):
        result(output("a.png", "!"), gone).save(tmp_path)


@pytest.mark.parametrize("at", ["out", "out/below"])
def test_a_folder_that_cannot_be_made_is_a_usage_error(tmp_path: Path, at: str) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="--out"):
        make_folder(tmp_path / at)
    with pytest.raises(UsageError, match="--out"):
        result(output()).save(tmp_path / at)


def test_a_full_disk_leaves_nothing_half(tmp_path: Path) -> None:
    # In a process of its own, whose files may not be larger than 64 KiB.
    script = f"""
        import base64, resource
        from pathlib import Path
        from settee.client.client_errors import UsageError
        from settee.client.saving import Result
        from settee.client.job_outputs import Output
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        def output(name, size):
            return Output("images", name, "base64", base64.b64encode(b"x" * size).decode())
        try:
            Result("job-1", (output("large.png", 200_000), output("small.png", 100))).save(Path({str(tmp_path)!r}))
        except UsageError as error:
            print(error.message)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "large.png was not saved: cannot write into" in done.stdout
    assert files(tmp_path) == {"small.png": b"x" * 100}


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        ("ComfyUI_00001_.png", "ComfyUI_00001_.png"),
        ("größer ネコ 🦊.webp", "größer ネコ 🦊.webp"),
        ("../../evil.png", "evil.png"),
        ("/etc/passwd", "passwd.png"),
        ("C:\\Windows\\evil.png", "evil.png"),
        ("a/..", "image.png"),
        ("..", "image.png"),
        ("", "image.png"),
        ("/", "image.png"),
        (".bashrc", "bashrc.png"),
        (".png", "png.png"),
        ("-rf.png", "rf.png"),
        ("~/x.png", "x.png"),
        ("con.png", "_con.png"),
        ("NUL", "_NUL.png"),
        ("com1.a.png", "_com1.a.png"),
        ("aux .png", "_aux.png"),
        ("a:b*c?.png", "a_b_c_.png"),
        ("stream.png:$DATA", "stream.png_$DATA.png"),
        ("a\x00b\nc\x1b[2J.png", "abc[2J.png"),
        ("photo\u202egnp.exe", "photognp.exe.bin"),
        ("setup.EXE", "setup.EXE.bin"),
        ("page.html", "page.html.bin"),
        ("a.tar.gz", "a.tar.gz"),
        ("weights.safetensors", "weights.safetensors"),
        ("dots....", "dots.png"),
        ("a.png ", "a.png"),
        ("half\ud83d.png", "half.png"),
        ("e\u0301.png", "é.png"),
        ("x/Settee-Batch.jsonl", "_Settee-Batch.jsonl"),
    ],
)
def test_names_are_of_our_own_choosing(hint: str, name: str) -> None:
    assert plain_name(output(hint, media_type="image/png")) == name


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"media_type": "image/jpeg"}, "x.jpg"),
        ({"media_type": "TEXT/plain; charset=utf-8"}, "x.txt"),
        ({"media_type": "application/x-evil"}, "x.bin"),
        ({"kind": "texts"}, "x.txt"),
        ({}, "x.bin"),
    ],
)
def test_without_a_suffix_the_media_type_gives_one(keys: dict[str, Any], name: str) -> None:
    assert plain_name(output("x", **keys)) == name


@pytest.mark.parametrize("hint", ["ä" * 500 + ".png", "x" * 5000 + ".png", "🦊" * 100, "e" + "\u0323" * 300 + ".png"])
def test_long_names_are_cut_between_characters(hint: str, tmp_path: Path) -> None:
    name = plain_name(output(hint, media_type="image/png"))
    assert name.endswith(".png")
    assert len(name.encode()) <= MAX_BYTES
    assert result(output(hint)).save(tmp_path)[0].path.parent == tmp_path


@given(st.text(), st.sampled_from(KINDS), st.none() | st.text())
def test_no_hint_makes_a_bad_name(hint: str, kind: str, media_type: str | None) -> None:
    name = plain_name(output(hint, kind=kind, media_type=media_type))
    assert len(name.encode()) <= MAX_BYTES  # also: it is valid Unicode
    assert not set(name) & set('/\\\0\n\r\t<>:"|?*\u202e\u2066')
    assert name[0] not in ". -~"
    assert name[-1] not in ". "
    assert "." in name[1:]
    assert os.path.basename(name) == name


# --- what is there already --------------------------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    os.symlink("nowhere", tmp_path / "a-2.png")
    (tmp_path / "a-3.png").mkdir()
    saved = result(output(), output()).save(tmp_path)
    assert [one.path.name for one in saved] == ["a-4.png", "a-5.png"]
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()


def test_overwrite_replaces_what_is_there_but_no_output_of_the_same_job(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    os.symlink("elsewhere", tmp_path / "a.png")
    (tmp_path / "a-2.png").mkdir()
    saved = result(output(data=b"1"), output(data=b"2"), output("A.PNG", b"3")).save(tmp_path, overwrite=True)
    assert [one.path.name for one in saved] == ["a.png", "a-3.png", "A-2.PNG"] or os.name == "nt"
    assert (tmp_path / "a.png").read_bytes() == b"1"
    assert not (tmp_path / "a.png").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    again = result(output(data=b"4")).save(tmp_path, overwrite=True)
    assert (again[0].path.name, again[0].path.read_bytes()) == ("a.png", b"4")


@pytest.fixture(params=["hard links", "no hard links"])
def links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no hard links":

        def link(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    return str(request.param)


@pytest.mark.parametrize("metadata", [False, True])
def test_many_jobs_save_into_one_folder_at_once(tmp_path: Path, links: str, metadata: bool) -> None:
    contents = [b"%d" % number for number in range(48)]
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda data: result(output(data=data)).save(tmp_path, metadata=metadata)[0], contents))
    assert len({one.path for one in saved}) == len(contents)
    assert [one.path.read_bytes() for one in saved] == contents
    notes = [path for path in tmp_path.iterdir() if path.suffix == ".json"]
    assert len(notes) == (len(contents) if metadata else 0)
    assert all(json.loads(path.read_text())["file"] == path.name.removesuffix(".json") for path in notes)
    assert len(files(tmp_path)) == len(contents) + len(notes)
    assert {path.name for path in tmp_path.iterdir()} >= {"a.png", "a-2.png"}


def test_a_file_has_the_modes_that_any_new_file_has(tmp_path: Path, links: str) -> None:
    (tmp_path / "plain").write_bytes(b"")
    saved = result(output()).save(tmp_path)
    assert saved[0].path.stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- metadata -------------------------------------------------------------------------------------------------


def test_metadata_lies_beside_each(tmp_path: Path) -> None:
    made = result(
        output(node_id="9", media_type="image/png"),
        output("a.mp4"),
        seeds={"3.seed": 7},
        timings={"total": 12.5},
        warnings=("a word",),
        workflow={"3": {"class_type": "KSampler", "inputs": {"text": "ネコ \ud800"}}},
    )
    made.save(tmp_path, metadata=True)
    assert set(files(tmp_path)) == {"a.png", "a.png.json", "a.mp4", "a.mp4.json"}
    assert "ネコ" in (tmp_path / "a.png.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.png.json").read_text(encoding="utf-8")) == {
        "job_id": "job-1",
        "file": "a.png",
        "kind": "images",
        "node_id": "9",
        "media_type": "image/png",
        "size": len(DATA),
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "seeds": {"3.seed": 7},
        "timings": {"total": 12.5},
        "warnings": ["a word"],
        "workflow": made.workflow,
    }


def test_a_file_and_its_metadata_have_one_number(tmp_path: Path) -> None:
    (tmp_path / "a.png.json").write_text("mine")
    (tmp_path / "a-2.png").write_text("mine")
    saved = result(output(), output("a.png.json", kind="files")).save(tmp_path, metadata=True)
    assert [one.path.name for one in saved] == ["a-3.png", "a.png-2.json"]
    assert set(files(tmp_path)) == {
        *("a.png.json", "a-2.png", "a-3.png", "a-3.png.json", "a.png-2.json", "a.png-2.json.json")
    }
    assert (tmp_path / "a.png.json").read_text() == "mine"


# --- the package ----------------------------------------------------------------------------------------------


def test_a_part_goes_when_saving_is_interrupted(tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_part(tmp_path) as part:
            part.write(b"half")
            assert len(files(tmp_path)) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert files(tmp_path) == {}


def test_saving_is_stopped_before_it_begins(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    given = [output(), output("b.png", "http://127.0.0.1:9/b.png", type="url")]
    with pytest.raises(ClientError, match="stopped") as caught:
        result(*given).save(tmp_path, stop=stop)
    assert caught.value.exit_code == 5
    assert files(tmp_path) == {"a.png": DATA}
