"""The rows of a batch, and the ledger: what counts for a row, what is refused, what is the same job."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from settee.client import batch, cli_options
from settee.client.batch import LEDGER, Entry, Ledger
from settee.client.client_errors import UsageError
from tests.support.client_command import INVERT, PICTURE
from tests.support.worker import ROOT


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(INVERT, "w.json")
    shutil.copy(PICTURE, "a.png")
    return tmp_path


def read(content: str | list[Any], *arguments: str, name: str = "jobs.jsonl") -> list[batch.Row]:
    """The rows of a batch with this content, under these arguments."""
    text = content if isinstance(content, str) else "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
    Path(name).write_text(text, encoding="utf-8", newline="")
    args = cli_options.parser().parse_args([*arguments, "--batch", name])
    return batch.read(name, args)


def refused(content: str | list[Any], *arguments: str, name: str = "jobs.jsonl") -> str:
    with pytest.raises(UsageError) as caught:
        read(content, *arguments, name=name)
    return caught.value.message


def test_a_row_counts_before_the_command_line() -> None:
    arguments = ("w.json", "--prompt", "a fox", "--steps", "5", "--seed", "3", "--lora", "x:1", "--img", "a.png")
    first, second, third = read([{"prompt": "-a bear", "lora": ["y", "z:0.5"]}, {"keep_seed": True}, {}], *arguments)
    assert (first.args.prompt, first.args.steps, first.args.seed) == ("-a bear", 5, 3)
    assert (first.args.lora, first.args.img) == (["y", "z:0.5"], ["a.png"])
    assert (second.args.keep_seed, second.args.seed) == (True, None)
    assert (third.args.prompt, third.args.lora, third.args.workflow) == ("a fox", ["x:1"], "w.json")
    assert [row.name for row in (first, second, third)] == ["001", "002", "003"]


def test_values_that_look_like_options_or_lines_are_values() -> None:
    # What Unicode calls the end of a line is none in JSON.
    odd = "--out=/ \u2028 \u0085 \x1b \n end=1"
    [row] = read([{"prompt": odd, "negative": "", "set": {"1.image": odd, "1.x": [1, 2], "1.y": None}}], "w.json")
    assert (row.args.prompt, row.args.negative) == (odd, "")
    assert row.args.set == [f"1.image={odd}", "1.x=[1, 2]", "1.y=null"]
    assert row.args.out == Path("out")


def test_files_beside_the_batch(place: Path) -> None:
    (place / "deep").mkdir()
    shutil.copy(PICTURE, "deep/b.png")
    shutil.copy(INVERT, "deep/other.json")
    rows = [{"workflow": "other.json", "img": ["b.png"]}, {"img": {"1": "b.png"}}, {"img": "a.png"}]
    first, second, third = read(rows, "w.json", name="deep/jobs.jsonl")
    assert (first.args.workflow, first.args.img) == (str(Path("deep/other.json")), [str(Path("deep/b.png"))])
    assert second.args.img == ["1=deep/b.png"]
    assert third.args.img == ["a.png"]


def test_csv() -> None:
    text = '\ufeffname,img,prompt,seed,set\r\nä,a.png; 1=a.png,"two\r\nlines, a comma",7,\r\n,,,,1.x=1;1.y=2\r\n'
    first, second = read(text, "w.json", name="jobs.csv")
    assert (first.name, first.args.img, first.args.seed) == ("ä", ["a.png", "1=a.png"], 7)
    assert first.args.prompt == "two\nlines, a comma"
    assert (second.name, second.args.prompt, second.args.set) == ("002", None, ["1.x=1", "1.y=2"])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"promt": "x"}, "'promt' is not an option of a row"),
        ({"out": "/"}, "'out' is not an option of a row"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": True}, "must be a string or a number"),
        ({"prompt": ["a", "b"]}, "must be a string or a number"),
        ({"keep_seed": "perhaps"}, "true or false"),
        ({"steps": "many"}, "invalid int"),
        ({"seed": 1, "keep_seed": True}, "not allowed with"),
        ({"name": LEDGER}, "belongs to the ledger"),
        ([1], "is not an object"),
        ("text", "is not an object"),
    ],
)
def test_a_row_that_cannot_be(row: Any, words: str) -> None:
    message = refused([{"prompt": "good"}, row], "w.json")
    assert "line 2: " in message
    assert words in message


def test_all_problems_are_told_at_once() -> None:
    message = refused('{"a": 1}\n\n{"seed": "x"}\nnot json\n{"name": "A"}\n{"name": "a"}', "w.json")
    assert all(f"line {number}: " in message for number in (1, 3, 4))
    assert "'a' is used by 2 rows" in message
    assert "20" not in message
    assert "… and 5 more" in refused([{"x": 1}] * 25, "w.json")
    assert "holds no jobs" in refused("\n\n", "w.json")
    assert "names no workflow" in refused([{}])
    assert "more cells" in refused("prompt\nx,y\n", "w.json", name="jobs.csv")


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc/passwd", "a/b", "CON", ".hidden", "-rf", "a\x00b", "", " ", "x" * 999]
)
def test_names_stay_below_the_folder(name: str) -> None:
    [row] = read([{"name": name}], "w.json")
    folder = (Path("out") / row.name).resolve()
    assert folder.parent == Path("out").resolve()
    assert not row.name.startswith((".", "-"))
    folder.mkdir(parents=True)


# --- what is the same job -------------------------------------------------------------------------------


def keys(*rows: Any, arguments: tuple[str, ...] = ("w.json",)) -> list[str]:
    return [row.key for row in read(list(rows), *arguments)]


def test_a_key_is_of_what_is_asked_for() -> None:
    [plain] = keys({"prompt": "x"})
    assert keys({"prompt": "x", "name": "other"}) == [plain]
    assert keys({}, arguments=("w.json", "--prompt", "x", "--jobs", "9", "--quiet")) == [plain]
    assert plain not in keys({"prompt": "y"}, {"prompt": "x", "seed": 1}, {"prompt": "x", "img": "a.png"})
    first, second = keys({"prompt": "x"}, {"prompt": "x"})
    assert first == plain != second, "asked for twice, made twice"


@pytest.mark.parametrize("row", [{"img": "1=a.png"}, {"img": "a.png"}, {"workflow": "w.json"}, {"workflow": "named"}])
def test_a_key_is_of_the_files_contents(place: Path, row: Any) -> None:
    (place / "workflows").mkdir()
    shutil.copy(INVERT, "workflows/named.json")
    before = keys(row)
    assert keys(row) == before
    for name in ("w.json", "workflows/named.json"):
        (place / name).write_text(INVERT.read_text().replace("inverted", "changed"))
    (place / "a.png").write_bytes(PICTURE.read_bytes() + b"more")
    assert keys(row) != before


# --- the ledger -----------------------------------------------------------------------------------------


def test_the_ledger_remembers_the_last_line(tmp_path: Path) -> None:
    folder, seeds = tmp_path / "out", {"5.seed": 3}
    done = Entry("k1", "one \u2028 \x85", "done", "job-1", "endpoint e", files=["one/ä.png"], seeds=seeds)
    with Ledger(folder) as ledger:
        ledger.write(Entry("k1", "one \u2028 \x85", "sent", "job-1", "endpoint e"))
        ledger.write(
            Entry("k1", "one \u2028 \x85", "done", "job-1", "endpoint e", files=["one/ä.png"], seeds={"5.seed": 3})
        )
        ledger.write(Entry("k2", "two", "sent", "job-2"))
    with (folder / LEDGER).open("ab") as file:
        file.write(b'[]\nnull\n{"status": "done"}\n\xff\xfe\n{"key": "k2", "name": "two", "status": "do')
    for _ in range(2):
        with Ledger(folder) as ledger:
            assert ledger.get("k1") == done
            assert ledger.get("k2") == Entry("k2", "two", "sent", "job-2")
            assert not ledger.is_done("k1"), "its file is not there"
            (folder / "one").mkdir(exist_ok=True)
            (folder / "one/ä.png").touch()
            assert ledger.is_done("k1")
            assert not ledger.is_done("k2")
            (folder / "one/ä.png").unlink()
            ledger.write(Entry("k3", "three", "failed", "job-3", error="why"))


def test_a_ledger_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path):
        pass
    with Ledger(tmp_path) as ledger:
        ledger.write(Entry("k", "n", "done"))
        ledger.remove()
    assert not (tmp_path / LEDGER).exists()


def test_a_ledger_goes_where_open_files_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    unlink = Path.unlink

    def refusing(path: Path, missing_ok: bool = False) -> None:
        if ledger._file is not None or not files[0].closed:
            raise PermissionError(13, "The process cannot access the file")
        unlink(path, missing_ok=missing_ok)

    with Ledger(tmp_path) as ledger:
        assert ledger._file is not None
        files = [ledger._file]
        monkeypatch.setattr(Path, "unlink", refusing)
    assert files[0].closed
    assert not (tmp_path / LEDGER).exists()


def test_a_ledger_that_goes_leaves_the_next_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def taken_over(path: Path, missing_ok: bool = False) -> None:
        monkeypatch.setattr(Path, "unlink", unlink)
        unlink(path, missing_ok=missing_ok)
        path.write_text("another run's")

    with Ledger(tmp_path):
        monkeypatch.setattr(Path, "unlink", taken_over)
    assert (tmp_path / LEDGER).read_text() == "another run's"


def test_a_ledger_is_one_runs(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from settee.client.batch import Ledger\n"
        "with Ledger(pathlib.Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(UsageError, match="another run"), Ledger(tmp_path):
            pass
        other.kill()
    with Ledger(tmp_path) as ledger:
        assert ledger.get("k") is None


def test_a_ledger_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(UsageError, match="cannot be used"), Ledger(tmp_path):
        pass


def test_a_very_long_repeat_begins_soon() -> None:
    args = cli_options.parser().parse_args(["w.json", "--repeat", "100000"])
    begun = time.process_time()
    rows = batch.repeated(args, args.repeat)
    assert len({row.key for row in rows}) == 100_000
    assert rows[-1].name == "100000"
    assert time.process_time() - begun < 5
