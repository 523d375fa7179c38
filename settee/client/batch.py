"""Many jobs from one file: JSONL (an object a line) or CSV (a header of option names).

What a row does not set is as on the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from settee.base.files import Lock, sha256_of, try_lock
from settee.base.text import first_of
from settee.client.arguments import parse_given, sets_from
from settee.client.cli_options import ROW_KEYS, Misuse, parser
from settee.client.client_errors import UsageError
from settee.client.job_outputs import LEDGER, Output, plain_name

_LISTS = ("img", "mask", "video", "audio", "lora", "set")
#: What a row's option puts back to its default.
_EXCLUSIVE: dict[str, tuple[str, Any]] = {"seed": ("keep_seed", False), "keep_seed": ("seed", None)}


@dataclass(frozen=True)
class Row:
    """One job of a batch."""

    #: Folder of its results below --out: the row's own name, or its number.
    name: str
    #: The command line as it counts for this row.
    args: argparse.Namespace
    #: Of all that decides what the job makes.
    key: str


# --- rows ----------------------------------------------------------------------------------------------------


def repeated(args: argparse.Namespace, count: int) -> list[Row]:
    """Return the command itself, ``count`` times."""
    return _keyed([(_number(number, count), args) for number in range(1, count + 1)])


def read(path: str, args: argparse.Namespace) -> list[Row]:
    """Return the rows of a batch. Raises UsageError with every problem."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--batch {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    is_csv = file.suffix.lower() == ".csv"
    problems: list[str] = []
    found: list[tuple[str, argparse.Namespace]] = []
    lines = list(_csv(text) if is_csv else _jsonl(text))
    for number, (line, values) in enumerate(lines, 1):
        try:
            if isinstance(values, UsageError):
                raise values
            found.append(_row(values, args, file.parent, _number(number, len(lines))))
        except (UsageError, Misuse) as error:
            problems.append(f"line {line}: {error}")
    problems += [
        f"the name {name!r} is used by {count} rows: each needs a folder of its own"
        for name, count in Counter(name.casefold() for name, _ in found).items()
        if count > 1
    ]
    if problems:
        raise UsageError("\n  ".join([f"--batch {path}:", *first_of(problems, 20)]))
    if not found:
        raise UsageError(f"--batch {path} holds no jobs")
    return _keyed(found)


def _number(number: int, count: int) -> str:
    return str(number).zfill(max(3, len(str(count))))


def _jsonl(text: str) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON's strings may hold what Unicode calls the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, UsageError(f"is not valid JSON: {error}")


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                yield reader.line_num, UsageError("has more cells than the header")
                continue
            cells = {name.strip(): value for name, value in row.items() if value and value.strip()}
            # A spreadsheet's cell holds one string: several files are separated by ";".
            lists = {name: [part.strip() for part in cells[name].split(";")] for name in _LISTS if name in cells}
            yield reader.line_num, cells | lists
    except csv.Error as error:
        yield reader.line_num, UsageError(f"is not valid CSV: {error}")


def _row(values: Any, args: argparse.Namespace, folder: Path, number: str) -> tuple[str, argparse.Namespace]:
    if not isinstance(values, Mapping):
        raise UsageError("is not an object")
    if unknown := [name for name in values if name not in ROW_KEYS]:
        raise UsageError(f"{', '.join(map(repr, unknown))} is not an option of a row; these are: {', '.join(ROW_KEYS)}")
    replaced: dict[str, Any] = {name: [] for name in _LISTS if name in values}
    replaced |= {other: unset for name, (other, unset) in _EXCLUSIVE.items() if name in values}
    given = {name: value for name, value in values.items() if value is not None}
    texts = [text for name in given if name not in ("workflow", "name") for text in _option(name, given[name])]
    found = parser().parse_args(texts, argparse.Namespace(**{**vars(args), **replaced}))
    # argparse sets a positional that is not among the texts to its default.
    found.workflow = _found_from(str(given["workflow"]), folder) if "workflow" in given else args.workflow
    if found.workflow in (None, "-"):
        raise UsageError("names no workflow that can be read for many jobs, nor does the command line")
    for name in ("img", "mask", "video", "audio"):
        if name in values:
            setattr(found, name, [_given_from(text, folder) for text in getattr(found, name)])
    return _safe(values.get("name"), number), found


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if name == "keep_seed":
        if str(value).lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"keep_seed must be true or false, not {value!r}")
        return [flag] if str(value).lower() in ("true", "1", "yes") else []
    if name in _LISTS:
        items = list(sets_from(value)) if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    else:
        items = [value]
    if any(not isinstance(item, (str, int, float)) or isinstance(item, bool) for item in items):
        raise UsageError(f"{name} must be a string or a number" + (", or a list of them" if name in _LISTS else ""))
    return [f"{flag}={item}" for item in items]


def _found_from(text: str, folder: Path) -> str:
    """Return the path as the command line would read it, or else the one next to the batch file."""
    path = Path(text)
    there = folder / path
    return str(there) if not path.is_absolute() and not path.exists() and there.exists() else text


def _given_from(text: str, folder: Path) -> str:
    if _found_from(text, folder) != text or Path(text).exists():
        return _found_from(text, folder)
    node, equals, path = text.partition("=")
    return f"{node}={_found_from(path, folder)}" if equals else text


def _safe(name: Any, number: str) -> str:
    """Return a row's name as the name of its folder, by the rules for files."""
    if name is None:
        return number
    name = str(name).replace("/", "_").replace("\\", "_")
    safe = plain_name(Output("texts", f"{name}.txt", "text", "")).removesuffix(".txt")
    if safe.casefold() == LEDGER:
        raise UsageError(f"the name {name!r} belongs to the ledger")
    return safe


def _keyed(rows: list[tuple[str, argparse.Namespace]]) -> list[Row]:
    """Return the rows with their keys, which cover all options and the bytes of the named files; equal rows differ by
    their order."""
    digest = functools.lru_cache(maxsize=None)(_digest)
    # A --repeat is one command, however often.
    asked = {id(args): _asked_for(args, digest) for args in {id(args): args for _, args in rows}.values()}
    seen: Counter[str] = Counter()
    found = []
    for name, args in rows:
        text = asked[id(args)]
        seen[text] += 1
        found.append(Row(name, args, hashlib.sha256(f"{text}#{seen[text]}".encode()).hexdigest()[:32]))
    return found


def _asked_for(args: argparse.Namespace, digest: Callable[[str, bool], str]) -> str:
    """Return a digest of everything that decides what a job makes."""
    asked = {key: getattr(args, key, None) for key in ROW_KEYS if key != "name"}
    asked["how"] = [args.max_side, args.jpeg, args.delivery, args.model, args.allow_partial]
    files = {}
    for text in [*args.img, *args.mask, *args.video, *args.audio]:
        with contextlib.suppress(UsageError):  # the job will report it
            path = str(parse_given(text).path)
            files[path] = digest(path, False)
    files[args.workflow] = digest(args.workflow, True)
    return hashlib.sha256(json.dumps([asked, files], sort_keys=True, default=str).encode()).hexdigest()


def _digest(text: str, is_workflow: bool) -> str:
    """Return the digest of the named file or workflow; "" where there is none, which the job will report."""
    from settee.client import workflow_files

    try:
        if not is_workflow:
            return sha256_of(text)
        data = workflow_files.read(text)[0]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    except (UsageError, OSError, ValueError):
        return ""


# --- the ledger ----------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """The ledger's record of one job."""

    key: str
    name: str
    #: ``sent``, ``done`` or ``failed``.
    status: str
    job_id: str | None = None
    target: str | None = None
    files: list[str] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    error: str | None = None


class Ledger:
    """The ledger's file, locked while it is entered; then every method may be called from any thread.

    Raises UsageError when it cannot be read or written, or another run has it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self._mutex = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Ledger:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as opened:
                file = opened.enter_context(self.path.open("a+b"))
                # Two runs of one batch would send every job twice. Windows and some network shares have no locks.
                if try_lock(file.fileno()) is Lock.BUSY:
                    raise UsageError(
                        f"another run is writing to {self.path.parent} now: wait for it, or choose another --out"
                    )
                file.seek(0)
                content = file.read()
                if content and not content.endswith(b"\n"):
                    file.write(b"\n")  # a run that was killed while it wrote leaves half a line
                opened.pop_all()
                self._file = file
        except OSError as error:
            raise UsageError(f"{self.path} cannot be used: {error.strerror}") from error
        for line in content.split(b"\n"):
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # a line that is not an entry
                entry = Entry(**json.loads(line))
                self._entries[entry.key] = entry
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            file, self._file = self._file, None
        if file is None:
            return
        # While the lock is ours; or afterwards, as Windows does not remove an open file.
        for opened in (file, contextlib.nullcontext()):
            with contextlib.suppress(OSError), opened:
                if not self._entries:
                    self.path.unlink(missing_ok=True)
                break

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def is_done(self, key: str) -> bool:
        """Return True if a job has succeeded and all its files still exist."""
        entry = self.get(key)
        folder = self.path.parent
        return entry is not None and entry.status == "done" and all((folder / name).exists() for name in entry.files)

    def write(self, entry: Entry) -> None:
        """Write an entry; it is on disk when this returns: what was paid for must not be forgotten."""
        line = json.dumps({name: value for name, value in vars(entry).items() if value})
        with self._mutex:
            if self._file is None:
                return  # the run is over, and this thread was not waited for
            self._entries[entry.key] = entry
            try:
                self._file.write(line.encode("ascii") + b"\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise UsageError(f"{self.path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Forget all entries, so that the file is removed."""
        self._entries.clear()
