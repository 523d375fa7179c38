"""The grammar of MODELS, MODELS_FILE and a job's `models`: strings and mappings into :class:`ModelEntry`.

    RepoID[@revision]:Filename:Target[:LocalName]      a file of a Hugging Face repository
    RepoID[@revision]:*:Target[:LocalName]             all its files, below Target/LocalName (the repository's name)
    s3://bucket/key:Target[:LocalName]                 an object of the configured S3 endpoint
    http(s)://host/path[?query]:Target[:LocalName]     any web server

each optionally followed by ``#sha256=HEX``, ``#lazy``, ``#preload`` or several (``#sha256=HEX&lazy``). A mapping has
the first part as ``source`` and the rest as keys. Every bad entry is reported with its position, before anything is
fetched. No network is used.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from settee.base.errors import ConfigError, UnsafePath
from settee.base.settings import Settings, secret_named
from settee.base.text import shown
from settee.base.yaml_io import read_yaml
from settee.comfyui.model_folders import KINDS
from settee.comfyui.workflow import Problem
from settee.models.entry import HubFile, ModelEntry, S3Object, Source, WebFile
from settee.models.folder.place import place
from settee.staging.workspace import safe_relative

#: Keys of an entry that is a mapping.
KEYS = ("source", "target", "name", "sha256", "size", "required", "lazy", "preload", "token")
#: A job must not name the worker's variables, and needs all that it brings.
JOB_KEYS = ("source", "target", "name", "sha256", "size")
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
_REVISION = re.compile(r"[\w./-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BUCKET = re.compile(r"[\w.-]{3,255}")
#: A Target at the end of a URL: plain folders, no dot.
_FOLDERS = re.compile(r"[\w-]+(/[\w-]+)*")
_OPTIONS = re.compile(r"#((?:sha256=[^#&]*|lazy|preload)(?:&(?:sha256=[^#&]*|lazy|preload))*)$")
_FORMS = (
    "RepoID[@revision]:Filename:Target[:LocalName], s3://bucket/key:Target[:LocalName] or https://…:Target[:LocalName]"
)
#: Hosts whose file pages are understood as files of the Hub.
_HUB_HOSTS = ("huggingface.co", "hf.co")
_HUB_PAGE = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)/(?:resolve|blob)/(?P<revision>[\w.%-]+)/(?P<filename>.+)")


class _Bad(ValueError):
    """A problem of one entry, to follow its position."""


def configured(settings: Settings) -> tuple[ModelEntry, ...]:
    """Return the entries of MODELS and MODELS_FILE. Raises ConfigError with every bad one."""
    problems: list[Problem] = []
    entries = [
        *_parse_all(_split(settings.models), "MODELS entry {}".format, problems, KEYS),
        *_parse_all(_read(settings.models_file, problems), "MODELS_FILE entry {}".format, problems, KEYS),
    ]
    entries = _without_clashes(entries, problems)
    if problems:
        raise ConfigError.from_problems(problems, "MODELS")
    return tuple(entries)


def of_job(items: Sequence[Any]) -> tuple[tuple[ModelEntry, ...], list[Problem]]:
    """Return a job's `models`, and their problems (``path`` is ``models.0``)."""
    problems: list[Problem] = []
    found = _parse_all(items, lambda number: f"models.{number - 1}", problems, JOB_KEYS)
    return tuple(_without_clashes(found, problems)), problems


def doubts(entries: Iterable[ModelEntry]) -> list[str]:
    """Return warnings for folders that are nearly ComfyUI's. A custom node may have one of its own."""
    folders = {folder for names in KINDS.values() for folder in names}
    found = []
    for entry in entries:
        first = entry.path.parts[0]
        near = difflib.get_close_matches(first.lower(), folders, n=1, cutoff=0.8)
        if first not in folders and near:
            found.append(f"{entry.position}: ComfyUI's own nodes do not look in {first!r}; did you mean {near[0]!r}?")
    return found


def _parse_all(
    items: Iterable[Any], position: Callable[[int], str], problems: list[Problem], keys: tuple[str, ...]
) -> list[ModelEntry]:
    entries = []
    for number, item in enumerate(items, 1):
        where = position(number)
        try:
            entries.append(_entry(item, where, keys))
        except _Bad as error:
            problems.append({"path": where, "problem": str(error)})
    return entries


def _without_clashes(entries: list[ModelEntry], problems: list[Problem]) -> list[ModelEntry]:
    """Return each place once: the same entry twice is one, two files for one place are a problem."""
    placed: dict[str, ModelEntry] = {}
    for entry in entries:
        # Some volumes do not tell case apart.
        first = placed.setdefault(str(entry.path).lower(), entry)
        if first.source != entry.source or first.sha256 != entry.sha256:
            problem = f"goes to {entry.path}, where {first.position} goes too: give one of them another LocalName"
            problems.append({"path": entry.position, "problem": problem})
    return list(placed.values())


def _split(text: str) -> list[str]:
    """Entries stand between commas or line breaks; a comma within a URL is written %2C."""
    return [item.strip() for item in re.split(r"[,\n]", text) if item.strip()]


def _read(path: Path | None, problems: list[Problem]) -> list[Any]:
    if path is None:
        return []
    try:
        content = read_yaml(path, str(path))
    except ConfigError as error:
        problems.append({"path": "MODELS_FILE", "problem": error.message})
        return []
    if isinstance(content, dict) and set(content) <= {"models"}:
        content = content.get("models")
    if content is None:
        return []
    if not isinstance(content, list):
        problem = "must be a list of entries, or a mapping with such a list as `models`"
        problems.append({"path": "MODELS_FILE", "problem": problem})
        return []
    return content


# --- one entry -------------------------------------------------------------------------------------------


def _entry(item: Any, position: str, keys: tuple[str, ...]) -> ModelEntry:
    if isinstance(item, str):
        item = _from_text(item, keys)
    elif not isinstance(item, dict):
        raise _Bad(f"must be a string ({_FORMS}) or a mapping with source and target, not {type(item).__name__}")
    return _build(_checked(item, keys), position, from_job="token" not in keys)


def _from_text(text: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the mapping that a string stands for."""
    text = text.strip()
    options: dict[str, str] = {}
    if match := _OPTIONS.search(text):
        text = text[: match.start()]
        options = {name: value for name, _, value in (part.partition("=") for part in match[1].split("&"))}
    elif "#" in (end := text.rpartition(":")[2]):
        wrong = end.partition("#")[2].partition("=")[0]
        near = difflib.get_close_matches(wrong.lower(), ("sha256", "lazy", "preload"), n=1)
        hint = f"did you mean #{near[0]}? " if near else ""
        raise _Bad(f"#{wrong[:40]} is not an option; {hint}There are #sha256=HEX, #lazy and #preload, joined by &")
    for name in ("lazy", "preload"):
        if name in options and name not in keys:
            raise _Bad(f"#{name} is for MODELS: a job's models are fetched when the job runs")
    source, target, local_name = _cut(text)
    flags: dict[str, Any] = {name: True for name in ("lazy", "preload") if name in options}
    return {"source": source, "target": target, "name": local_name, "sha256": options.get("sha256"), **flags}


def _cut(text: str) -> tuple[str, str, str | None]:
    """Split ``text`` into (source, Target, LocalName). A colon inside a URL is not a separator."""
    match = re.match(r"(?i)(https?|s3)://", text)
    if match is None:
        parts = text.split(":")
        if not 3 <= len(parts) <= 4:
            raise _Bad(f"{_safely(text)} has {len(parts)} part(s) between colons; write {_FORMS}")
        return f"{parts[0]}:{parts[1]}", parts[2], parts[3] if len(parts) == 4 else None
    host, slash, path = text[match.end() :].partition("/")
    head = text[: match.end()] + host + slash
    start, _, last = path.rpartition(":")
    before, _, target = start.rpartition(":")
    if start and before and "." in last and "/" not in last and _FOLDERS.fullmatch(target):
        return head + before, target, last
    if start and (_FOLDERS.fullmatch(last) or last in ("", ".", "..") or last.startswith((".", "/"))):
        return head + start, last, None
    raise _Bad(f"{_safely(text)} names no Target: end it with :checkpoints, :loras, … (the folder below models)")


def _safely(text: str) -> str:
    """Return the entry as an error may show it: the query of a URL may be a signature, its user a password."""
    return shown(re.sub(r"//.*@", "//", text.partition("?")[0], flags=re.DOTALL))


def _checked(item: Mapping[Any, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the given keys with their values, each of its type."""
    unknown = [str(key)[:50] for key in item if key not in keys]
    if unknown:
        raise _Bad(f"has unknown keys ({', '.join(unknown)}); the keys are {', '.join(keys)}")
    given = {key: value for key, value in item.items() if value is not None}
    kinds: dict[str, type] = {"required": bool, "lazy": bool, "preload": bool, "size": int}
    for key, value in given.items():
        kind = kinds.get(key, str)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            words = {bool: "true or false", int: "a number of bytes", str: "a string"}
            raise _Bad(f"{key} must be {words[kind]}, not {type(value).__name__}")
    for key in ("source", "target"):
        if key not in given:
            raise _Bad(f"has no {key}")
    return given


def _build(given: dict[str, Any], position: str, *, from_job: bool) -> ModelEntry:
    source = _source(given.pop("source").strip())
    name = given.pop("name", None)
    folder, name = _place(
        given.pop("target").strip().rstrip("/"), (_own_name(source) if name is None else name).strip()
    )
    if "sha256" in given:
        given["sha256"] = given["sha256"].strip().lower()
        if not _SHA256.fullmatch(given["sha256"]):
            raise _Bad("sha256 must be 64 hexadecimal digits")
    if given.get("size", 0) < 0:
        raise _Bad("size must be a number of bytes")
    if "token" in given:
        given["token"] = _token(given["token"])
    entry = ModelEntry(source, folder, name, position=position, from_job=from_job, **given)
    if entry.is_repository:
        if "sha256" in given or "size" in given:
            raise _Bad("sha256 and size are those of one file: leave them out for many")
        _place(str(entry.path), "model")  # a folder
    return entry


def _token(name: str) -> SecretStr:
    token = secret_named(name)
    if token is None:
        raise _Bad(f"token names the environment variable {shown(name)}, which is not set")
    return token


def _source(text: str) -> Source:
    scheme = re.match(r"(?i)(https?|s3)://", text)
    if scheme is None:
        return _hub_file(text)
    if scheme[1].lower() == "s3":
        bucket, _, key = text[len("s3://") :].partition("/")
        if not _BUCKET.fullmatch(bucket) or not key or key.endswith("/"):
            raise _Bad(f"{_safely(text)} is not an object: write s3://bucket/key")
        return S3Object(bucket, key)
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or re.search(r"[\x00-\x20\x7f]", text):
        raise _Bad(f"{_safely(text)} is not an http(s) address")
    page = _HUB_PAGE.fullmatch(parts.path) if host in _HUB_HOSTS else None
    if page is not None:
        # Copied from the site; as a file of the Hub it has a hash, a token and the host cache.
        return HubFile(page["repo"], unquote(page["filename"]), unquote(page["revision"]))
    return WebFile(text)


def _hub_file(text: str) -> HubFile:
    repo, colon, filename = text.partition(":")
    repo, at, revision = repo.partition("@")
    if not colon or not _REPO.fullmatch(repo):
        raise _Bad(f"{_safely(text)} names no Hugging Face repository and file: write org/name:path/to/file")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise _Bad(f"{shown(revision)} is not a revision: write org/name@branch, @tag or @commit")
    try:
        path = str(safe_relative(filename))
    except UnsafePath as error:
        raise _Bad(error.message) from error
    return HubFile(repo, path, revision or "main")


def _own_name(source: Source) -> str:
    """Return the file's name at its source, for an entry without a name."""
    if isinstance(source, WebFile):
        name = unquote(urlsplit(source.url).path.rpartition("/")[2])
        if "." not in name.strip("."):
            raise _Bad(f"{source.where} has no file name: add one as LocalName, such as :loras:style.safetensors")
        return name
    if isinstance(source, HubFile) and "*" in source.filename:
        return source.repo.rpartition("/")[2]
    return (source.key if isinstance(source, S3Object) else source.filename).rpartition("/")[2]


def _place(target: str, name: str) -> tuple[str, str]:
    """Return folder and name, checked to be a model's place. Folders of a LocalName are the Target's."""
    if not target:
        raise _Bad("names no Target: the folder below models, such as checkpoints")
    if target.startswith("models/"):
        raise _Bad("leave out models/: a Target is a folder below it, such as checkpoints")
    target, _, name = f"{target}/{name}".rpartition("/")
    try:
        place(target, name)
    except UnsafePath as error:
        raise _Bad(f"Target and LocalName: {error.message}") from error
    return target, name
