"""Files for the nodes that load some: which goes where, under which name, and whether it is one."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from settee.client.client_errors import UsageError
from settee.client.inject import Change, Given, InputFile
from settee.client.inject.selectors import LiveGraph, about
from settee.comfyui.graph import Place
from settee.comfyui.media import HEAD, format_of
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry, type_of, upload_kind
from settee.comfyui.workflow import Workflow, listed_nodes, natural_key

#: class → (input, kind, slots that give a mask). For what a registry does not state, or without one: ComfyUI's
#: own, VideoHelperSuite's (whose upload buttons are its own, without a flag) and KJNodes'.
_LOADERS: dict[str, tuple[str, str, set[int]]] = {
    "LoadImage": ("image", "image", {1}),
    "LoadImageOutput": ("image", "image", {1}),
    "LoadImageMask": ("image", "image", {0}),
    "LoadVideo": ("file", "video", set()),
    "LoadAudio": ("audio", "audio", set()),
    "VHS_LoadVideo": ("video", "video", set()),
    "VHS_LoadVideoFFmpeg": ("video", "video", set()),
    "VHS_LoadAudioUpload": ("audio", "audio", set()),
    "LoadAndResizeImage": ("image", "image", {1}),
}
#: Inputs that name a file, in a class of which nothing else is known.
_FILE_INPUTS = frozenset(["image", "mask", "video", "audio", "file", "filename"])
_OPTIONS = {"image": "--img", "mask": "--mask", "video": "--video", "audio": "--audio"}
_NOUNS = {"image": "an image", "mask": "a mask", "video": "a video", "audio": "a sound"}


@dataclass(frozen=True)
class Loader:
    """An input that takes the name of a file."""

    place: Place
    #: ``image``, ``mask``, ``image+mask`` (both from one file, the mask from its alpha channel), ``video``, ``audio``.
    kind: str
    #: An output is made from it.
    live: bool

    @property
    def takes(self) -> str:
        """Return the kind of file for it: ``image``, ``mask``, ``video`` or ``audio``."""
        return "image" if self.kind == "image+mask" else self.kind


def loaders(graph: LiveGraph) -> list[Loader]:
    """Return every input that takes a file's name, in natural order of node ids.

    The registry's upload flags and a table of the usual classes decide what is one. A picture's loader is a mask's
    where only its mask goes anywhere.
    """
    found = []
    for node_id in sorted(graph.workflow, key=natural_key):
        live = graph.live_uses(node_id)
        slots = {use.slot for use in live or graph.users[node_id]}
        for name, kind, masks in _file_inputs(graph, node_id):
            if kind == "image" and slots & masks:
                kind = "mask" if slots <= masks else "image+mask"
            found.append(Loader(Place(node_id, name), kind, bool(live)))
    return found


def _file_inputs(graph: LiveGraph, node_id: str) -> Iterator[tuple[str, str, set[int]]]:
    """Yield (input, ``image``, ``video`` or ``audio``, slots that give a mask)."""
    class_type, inputs = graph.class_of(node_id), graph.workflow[node_id]["inputs"]
    masks = {slot for slot, kind in enumerate(graph.registry.outputs(class_type)) if kind == "MASK"}
    kinds = {name: upload_kind(spec) for name, spec in graph.registry.inputs(class_type).items()}
    flagged = {name: (name, kind, masks) for name, kind in kinds.items() if kind in _OPTIONS}
    listed = {entry[0]: entry for entry in [_LOADERS[class_type]]} if class_type in _LOADERS else {}
    yield from (entry for name, entry in {**listed, **flagged}.items() if name in inputs)


def _unlisted(graph: LiveGraph, node_id: str, kind: str) -> list[Loader]:
    """Return the one input that names a file in a node without known ones, for a file of ``kind``.

    Where its class is known, the input must be a choice: a free text would be a path on the worker.
    """
    specs = graph.registry.inputs(graph.class_of(node_id))
    names = [
        name
        for name, value in graph.workflow[node_id]["inputs"].items()
        if name in _FILE_INPUTS and isinstance(value, str) and type_of(specs.get(name)) != "STRING"
    ]
    return [Loader(Place(node_id, name), kind, bool(graph.users[node_id])) for name in names if len(names) == 1]


# --- which file goes where -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Match:
    """One file, and the loader it is for."""

    loader: Loader
    file: Given
    option: str

    def __str__(self) -> str:
        return f"{self.option} {self.file}"


def media_changes(
    workflow: Workflow,
    *,
    images: Sequence[Given],
    masks: Sequence[Given] = (),
    videos: Sequence[Given] = (),
    audio: Sequence[Given] = (),
    registry: NodeRegistry = UNKNOWN,
) -> tuple[list[Change], list[InputFile]]:
    """Return the names that loaders get, and the files that go with them.

    A file with a node goes there; the others go to the rest of the live loaders of their kind in natural order of
    ids, and must be as many (none leaves them as they are). A loader whose picture and mask are both used takes an
    image; one whose mask alone is used, a mask. Files are looked at, not read: each must be there and not empty, and
    pictures must begin as one. Raises UsageError (Ambiguous) naming the option, the file as given, and the nodes.
    """
    graph = LiveGraph(workflow, registry)
    known = loaders(graph)
    places: dict[Place, _Match] = {}
    for kind, files in (("image", images), ("mask", masks), ("video", videos), ("audio", audio)):
        matches = _by_name(graph, known, kind, files)
        matches += _in_order(graph, known, kind, files, {match.loader.place for match in matches})
        for match in sorted(matches, key=lambda match: natural_key(match.loader.place.node_id)):
            with about(str(match)):
                place = graph.only_place(match.loader.place.node_id, match.loader.place.input)
                if place in places:
                    raise UsageError(f"node {graph.shown(place.node_id)} gets {places[place].file} already")
                _check_file(match.file.path, is_picture=kind in ("image", "mask"))
            places[place] = match
    return _changes(workflow, places)


def _by_name(graph: LiveGraph, known: Sequence[Loader], kind: str, files: Sequence[Given]) -> list[_Match]:
    """Return the files that name their node. Two for a node of two loading inputs take them in turn."""
    found: list[_Match] = []
    for file in files:
        if file.node is not None:
            with about(f"{_OPTIONS[kind]} {file}"):
                node_id = graph.named(file.node)
                own = [loader for loader in known if loader.place.node_id == node_id]
                own = own or _unlisted(graph, node_id, kind)
                if not own:
                    raise UsageError(f"node {graph.shown(node_id)} loads no file")
                free = [loader for loader in own if loader.place not in {match.loader.place for match in found}]
                loader = next((each for each in free if not _unfit(kind, each)), (free or own)[0])
                if problem := _unfit(kind, loader):
                    raise UsageError(f"node {graph.shown(node_id)} {problem}")
                found.append(_Match(loader, file, _OPTIONS[kind]))
    return found


def _unfit(kind: str, loader: Loader) -> str | None:
    """Return why a file of this kind cannot go into that loader; None when it can. A mask's loader takes an image that
    is given for it by name."""
    if not loader.live:
        return "is connected to no output: the file would do nothing"
    if kind == "mask" and loader.kind == "image+mask":
        return "takes its mask from the alpha channel of its image: give one file for both, with --img"
    if kind != loader.takes and (kind, loader.takes) != ("image", "mask"):
        return f"loads {_NOUNS[loader.takes]}: use {_OPTIONS[loader.takes]}"
    return None


def _in_order(
    graph: LiveGraph, known: Sequence[Loader], kind: str, files: Sequence[Given], taken: set[Place]
) -> list[_Match]:
    """Return the files that name no node, for the loaders that are left. Raises UsageError for another number."""
    option, loose = _OPTIONS[kind], [file for file in files if file.node is None]
    fitting = [loader for loader in known if loader.live and loader.takes == kind]
    left = [loader for loader in fitting if loader.place not in taken]
    if not loose or len(loose) == len(left):
        return [_Match(loader, file, option) for loader, file in zip(left, loose, strict=False)]
    if left:
        nodes = listed_nodes(graph.workflow, [loader.place.node_id for loader in left])
        take = f"{len(left)} {'nodes take' if len(left) > 1 else 'node takes'} one"
        named = f"{option} {left[0].place.node_id}=FILE"
        raise UsageError(
            f"{option}: {len(loose)} given, and {take}:\n{nodes}\ngive as many, or name the node of each: {named}"
        )
    what = f"{'left that loads' if fitting else 'known to load'} {_NOUNS[kind]}"
    message = f"{option}: {len(loose)} given, and no node is {what}"
    both = [loader.place.node_id for loader in known if loader.live and loader.kind == "image+mask"]
    if kind == "mask" and both:
        why = "the alpha channel of the image is the mask here, so give one file for both with --img"
        raise UsageError(f"{message}; {why}:\n{listed_nodes(graph.workflow, both)}")
    lines = [f"{message}; those that load files are:"]
    for other in known:
        if other not in fitting:
            use = f"for {_OPTIONS[other.takes]}" if other.live else "connected to no output"
            lines.append(f"  {graph.shown(other.place.node_id)}: {use}")
    raise UsageError("\n".join(lines) if lines[1:] else message)


def unfed(workflow: Workflow, changes: Sequence[Change]) -> list[str]:
    """Return a line for every live loader that gets no file, and names one of the machine that made the workflow."""
    changed = {Place(change.node_id, change.input) for change in changes}
    graph, lines = LiveGraph(workflow), []
    for loader in loaders(graph):
        name, node_id = graph.value(loader.place), loader.place.node_id
        is_named = isinstance(name, str) and graph.class_of(node_id) != "LoadImageOutput"
        if loader.live and is_named and loader.place not in changed:
            what = f"{graph.shown(node_id)} loads {name[:200]!r}"
            lines.append(f"{what}, and no file is given for it: {_OPTIONS[loader.takes]} FILE")
    return lines


# --- the files -------------------------------------------------------------------------------------------

#: First bytes of what else Pillow, and so ComfyUI's LoadImage, opens as a picture: Photoshop's, QOI, PNM, icons.
_OTHER_PICTURES = re.compile(rb"8BPS|qoif|P[1-6]\s|\0\0[\x01\x02]\0")


def _check_file(path: Path, *, is_picture: bool) -> None:
    """Check a file. Raises UsageError when it cannot be read, is empty, or is not a picture where one is needed."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UsageError("is a folder; name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError("is not an ordinary file")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except FileNotFoundError as error:
        raise UsageError("the file does not exist") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not head:
        raise UsageError("the file is empty")
    if is_picture and path.suffix.lower() != ".tga":  # Targa has no first bytes of its own
        known = format_of(head)
        if known == "HEIC":
            raise UsageError("ComfyUI does not load HEIC pictures whole: convert it to JPEG or PNG first")
        if known in (None, "PostScript", "web page") and not _OTHER_PICTURES.match(head):
            raise UsageError("is not a picture (PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF, …)")


def _changes(workflow: Workflow, places: dict[Place, _Match]) -> tuple[list[Change], list[InputFile]]:
    """Return the changes and files: one name for each file, and none that an unchanged loader reads already."""
    taken = {
        value.removesuffix("[input]").strip().casefold()
        for node_id, node in workflow.items()
        for name, value in node["inputs"].items()
        if isinstance(value, str) and Place(node_id, name) not in places
    }
    changes: list[Change] = []
    files: dict[tuple[str, str], InputFile] = {}
    for place, match in places.items():
        kind = match.loader.takes
        # Not by path alone: what is done to an image before it is sent (JPEG) would spoil a mask.
        same = (os.path.realpath(match.file.path), kind)
        if same not in files:
            files[same] = InputFile(_free_name(place.node_id, match.file.path, kind, taken), match.file.path, kind)
        changes.append(Change(place.node_id, place.input, files[same].name, match.option))
    return changes, list(files.values())


def _free_name(node_id: str, path: Path, kind: str, taken: set[str]) -> str:
    """Return ``57_8_photo.png``, and add it to ``taken``: ASCII letters, digits and ``_-.``, at most 120."""
    stem, suffix = (_ascii(part) for part in os.path.splitext(path.name))
    if len(suffix) > 12:
        stem, suffix = stem + suffix, ""
    # Cut from the left: names that differ do so at their end more often than not.
    base = f"{_ascii(node_id)[:40]}_{stem[-60:].strip('._') or kind}"
    name, count = base + suffix, 2
    while name.casefold() in taken:
        name, count = f"{base}-{count}{suffix}", count + 1
    taken.add(name.casefold())
    return name


def _ascii(text: str) -> str:
    """Return the string as part of a file's name: accents are dropped, other special characters become ``_``."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return re.sub(r"_{2,}", "_", re.sub(r"[^A-Za-z0-9._-]", "_", plain)).removesuffix(".")
