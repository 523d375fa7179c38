"""Many jobs from one file: JSONL (an object a line) or CSV (a header of option names).

What a row does not say is as on the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settee.base.files import sha256_of
from settee.client.errors import UsageError
from settee.client.inject.media import parse_given
from settee.client.ledger import LEDGER
from settee.client.options import ROW_KEYS
from settee.client.results import Output

_LISTS = ("img", "mask", "video", "audio", "lora", "set")
_EXCLUSIVE = {"seed": "keep_seed", "keep_seed": "seed"}
#: Problems that are named at once.
_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class _Unreadable:
    """What stands where a row should."""

    why: str


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
    """The command itself, so many times."""
    return _keyed([(_number(number, count), args) for number in range(1, count + 1)])


def read(path: str, args: argparse.Namespace, parse: Callable[[list[str], argparse.Namespace], Any]) -> list[Row]:
    """The rows of a batch. ``parse`` is the command line's parser. Raises UsageError with every problem."""
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
            found.append(_row(values, args, parse, file.parent, _number(number, len(lines))))
        except UsageError as error:
            problems.append(f"line {line}: {error.message}")
    problems += [
        f"the name {name!r} is used by {count} rows: each needs a folder of its own"
        for name, count in Counter(name.casefold() for name, _ in found).items()
        if count > 1
    ]
    if problems:
        more = f"\n  … and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        raise UsageError(f"--batch {path}:\n  " + "\n  ".join(problems[:_MOST_PROBLEMS]) + more)
    if not found:
        raise UsageError(f"--batch {path} holds no jobs")
    return _keyed(found)


def _number(number: int, count: int) -> str:
    return str(number).zfill(max(3, len(str(count))))


def _jsonl(text: str) -> Iterator[tuple[int, Any]]:
    # Not splitlines(): JSON's texts may hold what Unicode calls the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, _Unreadable(f"is not JSON: {error}")


def _csv(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                yield reader.line_num, _Unreadable("has more cells than the header")
                continue
            # A spreadsheet's cell holds one text: several files are parted by ";".
            yield (
                reader.line_num,
                {
                    name.strip(): [part.strip() for part in value.split(";")] if name.strip() in _LISTS else value
                    for name, value in row.items()
                    if value and value.strip()
                },
            )
    except csv.Error as error:
        yield reader.line_num, _Unreadable(f"is not CSV: {error}")


def _row(
    values: Any,
    args: argparse.Namespace,
    parse: Callable[[list[str], argparse.Namespace], Any],
    folder: Path,
    number: str,
) -> tuple[str, argparse.Namespace]:
    """Name and arguments of one row. Raises UsageError."""
    if isinstance(values, _Unreadable):
        raise UsageError(values.why)
    if not isinstance(values, Mapping):
        raise UsageError("is not an object")
    if unknown := [name for name in values if name not in ROW_KEYS]:
        raise UsageError(f"{', '.join(map(repr, unknown))} is not an option of a row; these are: {', '.join(ROW_KEYS)}")
    base = argparse.Namespace(**{**vars(args), **{name: [] for name in _LISTS if name in values}})
    for name, other in _EXCLUSIVE.items():
        if name in values:
            setattr(base, other, None if other == "seed" else False)
    texts = []
    for name, value in values.items():
        if name not in ("workflow", "name") and value is not None:
            texts += _option(name, value)
    found = parse(texts, base)
    # argparse sets a positional that is not among the texts to its default.
    found.workflow = args.workflow
    if values.get("workflow") is not None:
        found.workflow = _beside(str(values["workflow"]), folder)
    if found.workflow is None:
        raise UsageError("names no workflow, and neither does the command line")
    for name in ("img", "mask", "video", "audio"):
        if name in values:
            setattr(found, name, [_given_beside(text, folder) for text in getattr(found, name)])
    return _safe(values.get("name"), number), found


def _option(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if name == "keep_seed":
        if str(value).lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise UsageError(f"keep_seed must be true or false, not {value!r}")
        return [flag] if str(value).lower() in ("true", "1", "yes") else []
    if name in _LISTS:
        if isinstance(value, Mapping):
            value = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items()]
        items = value if isinstance(value, list) else [value]
    else:
        items = [value]
    if any(not isinstance(item, (str, int, float)) or isinstance(item, bool) for item in items):
        raise UsageError(f"{name} must be text or a number" + (", or a list of them" if name in _LISTS else ""))
    return [f"{flag}={item}" for item in items]


def _beside(text: str, folder: Path) -> str:
    """A file is looked for as the command line would, and else beside the batch."""
    path = Path(text)
    beside = folder / path
    return str(beside) if not path.is_absolute() and not path.exists() and beside.exists() else text


def _given_beside(text: str, folder: Path) -> str:
    if _beside(text, folder) != text or Path(text).exists():
        return _beside(text, folder)
    node, equals, path = text.partition("=")
    return f"{node}={_beside(path, folder)}" if equals else text


def _safe(name: Any, number: str) -> str:
    """A row's name as a folder's, by the rules for files."""
    if name is None:
        return number
    from settee.client.saving.names import plain_name

    name = str(name).replace("/", "_").replace("\\", "_")
    safe = plain_name(Output("texts", f"{name}.txt", "text", "")).removesuffix(".txt")
    if safe.casefold() == LEDGER:
        raise UsageError(f"the name {name!r} is the ledger's")
    return safe


def _keyed(rows: list[tuple[str, argparse.Namespace]]) -> list[Row]:
    """A row's key covers what is asked for and the bytes of the files that it names; equal rows are told by order."""
    digests: dict[str, str] = {}
    asked: dict[int, str] = {}
    seen: Counter[str] = Counter()
    found = []
    for name, args in rows:
        # A --repeat is one command, however often.
        if id(args) not in asked:
            asked[id(args)] = _asked_for(args, digests)
        text = asked[id(args)]
        seen[text] += 1
        found.append(Row(name, args, hashlib.sha256(f"{text}#{seen[text]}".encode()).hexdigest()[:32]))
    return found


def _asked_for(args: argparse.Namespace, digests: dict[str, str]) -> str:
    """All that decides what a job makes, as one text."""
    asked = {key: getattr(args, key, None) for key in ROW_KEYS if key != "name"}
    asked["how"] = [args.max_side, args.jpeg, args.delivery, args.model, args.allow_partial]
    files = {text: _digest(text, digests) for text in _named(args)}
    files[args.workflow] = _workflow_digest(args.workflow, digests)
    return hashlib.sha256(json.dumps([asked, files], sort_keys=True, default=str).encode()).hexdigest()


def _named(args: argparse.Namespace) -> Iterator[str]:
    for text in [*args.img, *args.mask, *args.video, *args.audio]:
        with contextlib.suppress(UsageError):  # the job will be told
            yield str(parse_given(text).path)


def _workflow_digest(text: str, known: dict[str, str]) -> str:
    """Of the workflow that is meant, be it by a name; "" for none, as the job will be told."""
    from settee.client import sources

    if (key := f"workflow {text}") not in known:
        try:
            data = sources.read(text, stdin=io.BytesIO()).data
            known[key] = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
        except UsageError:
            known[key] = ""
    return known[key]


def _digest(path: str, known: dict[str, str]) -> str:
    if path not in known:
        try:
            known[path] = sha256_of(path)
        except (OSError, ValueError):  # the job will be told that it is missing
            known[path] = ""
    return known[path]
