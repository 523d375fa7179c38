"""The command line of utils.py: place the models of MODELS and MODELS_FILE, or look at the models folder.

python utils.py             place all that is not lazy (the same as `place`)
python utils.py plan        what placing would do: from where, and how many bytes; nothing is written
python utils.py list        what was placed in the models folder
python utils.py verify      read everything that was placed, and compare
python utils.py prune       remove leftovers: unfinished downloads, what jobs brought
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from settee import __version__
from settee.base.errors import ConfigError, IntegrityError, JobCanceled, NoSpace, SetteeError
from settee.base.settings import Settings, load
from settee.models import spec
from settee.models.bars import Bars, amount
from settee.models.entry import ModelEntry
from settee.models.folder import upkeep
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.place import free_at, relative, set_aside_in
from settee.models.folder.records import Placed
from settee.models.folder.upkeep import Verdict
from settee.models.model_store import ModelStore
from settee.models.placing import IN_PLACE, expanded, known_files, listed
from settee.models.sources import addresses, linked

#: Exit codes. The first of these that fits a failure wins.
CODES = ((ConfigError, 2), (IntegrityError, 3), (NoSpace, 4), (SetteeError, 1))
_NOTHING = "no models to place: MODELS and MODELS_FILE are empty"
EXIT_CODES = """exit codes: 0 all is well; 1 a required model could not be placed; 2 a setting or argument is wrong;
3 a file does not match its entry (placing or verify); 4 there is not enough disk; 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (EXIT_CODES). Errors go to stderr."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        settings = load()
        return int(arguments.run(settings, arguments))
    except SetteeError as error:
        for line in error.lines():
            _report(line)
        return _code(error)
    except KeyboardInterrupt:
        _report("interrupted; downloaded parts are kept, and resumed next time")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="utils.py",
        description="Place the models of MODELS and MODELS_FILE in ComfyUI's models folder (docs/models.md).",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"settee {__version__}")
    parser.set_defaults(run=_place, lazy=False)
    commands = parser.add_subparsers(metavar="COMMAND")
    place = commands.add_parser("place", help="place every model that is not lazy (what utils.py does by itself)")
    place.set_defaults(run=_place)
    place.add_argument("--lazy", action="store_true", help="the lazy ones too")
    for name, run, words in (
        ("plan", _plan, "list what would be placed, from where, and how many bytes"),
        ("list", _list, "list what was placed"),
        ("verify", _verify, "read and compare what was placed"),
    ):
        command = commands.add_parser(name, help=words)
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    command = commands.add_parser("prune", help="remove unfinished downloads and what jobs brought")
    command.set_defaults(run=_prune)
    command.add_argument("--dry-run", action="store_true", help="only list what would be removed")
    return parser


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _code(error: SetteeError) -> int:
    return next(code for kind, code in CODES if isinstance(error, kind))


def _report(text: str) -> None:
    print(f"utils.py: {text}", file=sys.stderr)


# --- place -------------------------------------------------------------------------------------------------


def _place(settings: Settings, arguments: argparse.Namespace) -> int:
    configured = spec.configured(settings)
    for doubt in spec.doubts(configured):
        _report(f"warning: {doubt}")
    entries = [entry for entry in configured if arguments.lazy or not entry.lazy]
    if entries and settings.models_dir is None and not settings.comfy_dir.is_dir():
        raise ConfigError(f"no ComfyUI was found at COMFY_DIR={settings.comfy_dir}: set COMFY_DIR, or MODELS_DIR")
    if not entries:
        print(_NOTHING)
        return 0
    with Bars(sys.stderr) as bars:

        def on_end(entry: ModelEntry, outcome: str | SetteeError) -> None:
            if outcome == IN_PLACE or isinstance(outcome, JobCanceled):  # an interruption is reported once
                bars.forget(str(entry.path))
            else:
                words = f"failed: {outcome.message}" if isinstance(outcome, SetteeError) else outcome
                bars.finish(str(entry.path), words)

        store = ModelStore(settings, on_progress=lambda entry, *now: bars.update(str(entry.path), *now), on_end=on_end)
        try:
            outcomes = store.place(entries)
        finally:
            store.close()
    failed = {path: outcome for path, outcome in outcomes.items() if isinstance(outcome, SetteeError)}
    ends = f": {len(entries) - len(failed)} in place, {len(failed)} failed"
    is_unchanged = all(outcome == IN_PLACE for outcome in outcomes.values())
    count = f"{len(entries)} model{'s' if len(entries) > 1 else ''}"
    print(f"{count} in {settings.models_folder}{', all in place' if is_unchanged else ends}")
    required = {str(entry.path) for entry in entries if entry.required}
    codes = {_code(error) for path, error in failed.items() if path in required}
    return next((code for _, code in CODES if code in codes), 0)


# --- look --------------------------------------------------------------------------------------------------


def _plan(settings: Settings, arguments: argparse.Namespace) -> int:
    store = ModelStore(settings)
    store.load()
    rows = [row for entry in store.entries for row in _planned_files(entry, store)]
    wanted = sum(row["bytes"] or 0 for row in rows)
    if arguments.json:
        print(json.dumps({"models": rows, "bytes": wanted}, indent=2))
    else:
        for row in rows:
            size = f", {amount(row['bytes'])}" if row["bytes"] is not None else ""
            source = f" from {row['from']}" if row["from"] else ""
            lazy = " (lazy: when a job names it)" if row["lazy"] else ""
            print(f"{row['path']}: {row['action']}{source}{size}{lazy}")
        unknown = sum(row["bytes"] is None and row["action"].endswith("download") for row in rows)
        more = f" and {unknown} of unknown size" if unknown else ""
        print(f"{amount(wanted)}{more} to download to {settings.models_folder}" if rows else _NOTHING)
    code = max((row["code"] for row in rows if row["required"]), default=0)
    free = free_at(f"{settings.models_folder}/any")
    if wanted > free:
        _report(f"its disk has {amount(free)} free: give it more room, or leave models out")
        code = max(code, 4)
    return code


def _planned_files(entry: ModelEntry, store: ModelStore) -> list[dict[str, Any]]:
    try:
        if entry.is_repository:
            files = known_files(entry, store.tools.folder) or listed(entry, store.settings, None)
            return [row for file in files for row in _planned_files(file, store)]
        plan = _planned(entry, store)
    except SetteeError as error:
        plan = {"action": f"cannot be placed: {error.message}", "code": _code(error)}
    row = {"path": str(entry.path), "source": entry.source.where, "action": "in place", "from": None, "bytes": None}
    return [{**row, "lazy": entry.lazy, "required": entry.required, "code": 0, **plan}]


def _planned(entry: ModelEntry, store: ModelStore) -> dict[str, Any]:
    """Return what placing would do. Raises the error of the entry's last source."""
    state = store.tools.folder.state(entry)
    if state is FileState.RIGHT:
        return {}
    source = linked(entry, store.settings)
    if source is not None:
        return {"action": "link", "from": str(source)}
    action = "check, and perhaps download" if state is FileState.UNKNOWN else "download"
    *others, own = addresses(entry, store.settings)
    for origin in others:
        with contextlib.suppress(SetteeError):
            return {"action": action, "from": origin.label, "bytes": origin.ask().size}
    return {"action": action, "from": own.label, "bytes": own.ask().size}


def _list(settings: Settings, arguments: argparse.Namespace) -> int:
    folder = ModelFolder(settings.models_folder)
    aside = list(set_aside_in(folder.root))
    placed = [(item, _is_there(folder.root, item)) for item in folder.records if not item.pending]
    if arguments.json:
        keys = ("path", "size", "sha256", "source", "link", "from_job", "last_used")
        found = [{**{key: getattr(item, key) for key in keys}, "is_there": is_there} for item, is_there in placed]
        print(json.dumps([*found, *({"path": path, "set_aside": True} for path in aside)], indent=2))
        return 0
    rows = [
        (
            item.path,
            "gone, or changed" if not is_there else amount(item.size) if item.link is None else "linked",
            (item.sha256 or "")[:12] or "no sha256",
            item.source.partition("?")[0] + (" (a job's)" if item.from_job else ""),
        )
        for item, is_there in placed
    ]
    rows += [(path, "set aside", "", "yours to delete") for path in aside]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    if not rows:
        _report(f"nothing was placed in {settings.models_folder}")
    return 0


def _is_there(root: str, placed: Placed) -> bool:
    """Return True if the placed file still exists, by its size and time."""
    path = os.path.join(root, placed.path)
    try:
        info, link = os.stat(path), os.readlink(path) if os.path.islink(path) else None
    except OSError:
        return False
    return placed.matches(info.st_size, info.st_mtime_ns, link)


def _verify(settings: Settings, arguments: argparse.Namespace) -> int:
    folder = ModelFolder(settings.models_folder)
    rows, bad, unseen = [], 0, []
    for finding in upkeep.verify(folder):
        if finding.verdict in (Verdict.DAMAGED, Verdict.MISSING):
            bad += 1
            if finding.placed is not None and _is_there(folder.root, finding.placed):
                unseen.append(finding.path)
        rows.append({"path": finding.path, "verdict": finding.verdict.value, "detail": finding.detail})
        if not arguments.json:
            detail = f": {finding.detail}" if finding.detail else ""
            print(f"{finding.path}: {finding.verdict.value}{detail}")
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"nothing was placed in {settings.models_folder}")
    if bad:
        # Placing decides by size and time: a file with the recorded ones counts as right.
        first = f"remove {', '.join(unseen)}, and " if unseen else ""
        _report(f"{bad} of {len(rows)} are not what they were: {first}run utils.py to place them again")
    return 3 if bad else 0


def _prune(settings: Settings, arguments: argparse.Namespace) -> int:
    folder = ModelFolder(settings.models_folder)
    wanted = {relative(entry) for entry in expanded(spec.configured(settings), folder)}
    removed = upkeep.prune(folder, wanted, dry_run=arguments.dry_run)
    for item in removed:
        print(f"{item.path}: {amount(item.bytes)} ({item.why})")
    verb = "would be removed" if arguments.dry_run else "removed"
    print(f"{len(removed)} {verb}, {amount(sum(item.bytes for item in removed))}")
    return 0
