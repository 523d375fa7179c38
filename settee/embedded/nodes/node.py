"""A node: a function whose parameters declare its inputs by their defaults, and what /object_info lists of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from PIL import Image

from settee.embedded.broadcast import PreviewImage
from settee.embedded.folders import Folders
from settee.embedded.server_options import Options

MAX_RESOLUTION = 16384
"""The largest width or height ComfyUI's nodes accept, in pixels."""

Function = TypeVar("Function", bound=Callable[..., Any])


class Interrupted(Exception):
    """The running prompt was interrupted."""


class ImageBatch(list[Image.Image]):
    """An IMAGE: pictures of one size and mode, RGB or RGBA, 8 bits a channel. A MASK: mode L, 255 where it is 1.0."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self[0].size

    def each(self, change: Callable[[Image.Image], Image.Image]) -> ImageBatch:
        """Return the batch with every picture changed."""
        return ImageBatch(change(image) for image in self)

    def __str__(self) -> str:
        width, height = self.size
        return f"images({len(self)} of {width}x{height}, {self[0].mode})"


@dataclass(frozen=True)
class Outcome:
    """The result of a node: one value per output, and what it shows (the ``output`` of ``executed``)."""

    values: tuple[Any, ...] = ()
    ui: dict[str, list[Any]] | None = None


@dataclass
class Env:
    """The parts of the server that a running node can use."""

    options: Options
    #: Progress of the running node: value, total, preview. Raises Interrupted.
    report: Callable[[float, float, PreviewImage | None], None] = lambda value, total, preview: None
    #: Raises Interrupted when the running prompt should end.
    check_interrupted: Callable[[], None] = lambda: None

    @property
    def folders(self) -> Folders:
        """The server's directories."""
        return self.options.folders


@dataclass(frozen=True)
class Input:
    """One declared input: a type or the choices (a function of the folders where files are choices), and settings."""

    kind: str | list[str] | Callable[[Folders], list[str]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    section: str = "required"

    def config(self, folders: Folders, newer_schema: bool) -> list[Any]:
        """Return ``[type or choices, settings]``, as /object_info and errors repeat it."""
        kind = self.kind(folders) if callable(self.kind) else self.kind
        if newer_schema and isinstance(kind, list):
            return ["COMBO", {"multiselect": False, "options": kind, **self.settings}]
        return [kind, self.settings]


@dataclass(frozen=True)
class Node:
    """A node class. The prose that ComfyUI lists of each (tooltips, descriptions) is left out."""

    name: str
    category: str
    display_name: str
    returns: tuple[str, ...]
    function: Callable[..., Any]
    inputs: Mapping[str, Input]
    takes_env: bool
    module: str = "nodes"
    #: Written for ComfyUI's second node API: lists of choices become COMBO, and entries have a few more keys.
    newer_schema: bool = False
    return_names: tuple[str, ...] | None = None
    output_node: bool = False
    experimental: bool = False
    deprecated: bool = False
    #: Takes a model's file for its hash only: /object_info says so, and the worker passes it on to the caller.
    stand_in: bool = False
    #: What it showed is shown again when its result comes from the cache, without being an output.
    intermediate_output: bool = False
    #: ComfyUI's IS_CHANGED: a value, equal while a cached result holds. Gets the folders and constant inputs by name.
    fingerprint: Callable[[Folders, Mapping[str, Any]], Any] | None = None
    #: ComfyUI's VALIDATE_INPUTS for ``image``: gets the same, and returns what is wrong.
    check_image: Callable[[Folders, Mapping[str, Any]], str | None] | None = None

    def run(self, env: Env, inputs: dict[str, Any]) -> Outcome:
        """Do the node's work with its inputs by name, hidden ones among them."""
        for name, declared in self.inputs.items():
            if declared.section == "optional":
                inputs.setdefault(name, declared.settings.get("default"))
        result = self.function(env, **inputs) if self.takes_env else self.function(**inputs)
        if isinstance(result, Outcome):
            return result
        return Outcome(result if isinstance(result, tuple) else (result,))

    def info(self, folders: Folders) -> dict[str, Any]:
        """Return the entry of /object_info."""
        inputs: dict[str, dict[str, Any]] = {}
        for name, declared in self.inputs.items():
            config: Any = declared.config(folders, self.newer_schema)
            if declared.section == "hidden":
                config = config[:1] if self.newer_schema else config[0]
            inputs.setdefault(declared.section, {})[name] = config
        info = {
            "input": inputs,
            "input_order": {section: list(named) for section, named in inputs.items()},
            "is_input_list": False,
            "output": self.returns,
            "output_is_list": [False] * len(self.returns),
            "output_name": self.return_names or self.returns,
            "name": self.name,
            "display_name": self.display_name,
            "description": "",
            "python_module": self.module,
            "category": self.category,
            "output_node": self.output_node,
            "has_intermediate_output": self.intermediate_output,
        }
        if self.stand_in:
            info["settee_stand_in"] = True
        marks = {"deprecated": self.deprecated, "experimental": self.experimental}
        if self.newer_schema:
            info |= {"output_tooltips": [None] * len(self.returns), "output_matchtypes": None, "price_badge": None}
            return info | marks | {"dev_only": False, "api_node": False}
        return info | {name: True for name, is_set in marks.items() if is_set}


NODES: dict[str, Node] = {}
"""Every class by name."""


def node(
    name: str, category: str, title: str = "", returns: str = "", *, extras: str = "", **more: Any
) -> Callable[[Function], Function]:
    """Register a function as a node class.

    ``returns``: its outputs' types, separated by spaces. ``extras``: the file of comfy_extras that has the class, for
    the second node API. ``more``: fields of Node. The function may take ``env`` before its inputs.
    """
    if extras:
        more |= {"module": f"comfy_extras.{extras}", "newer_schema": True}

    def register(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        inputs = {key: each.default for key, each in parameters.items() if key != "env"}
        outputs = tuple(returns.split())
        NODES[name] = Node(name, category, title or name, outputs, function, inputs, "env" in parameters, **more)
        return function

    return register


# --- declarations: Any, because they stand as defaults of parameters that get the values ----------------------------


def value(kind: str | list[str] | Callable[[Folders], list[str]], **settings: Any) -> Any:
    """Declare an input of a type, or of choices."""
    return Input(kind, settings)


def integer(default: int | None = None, low: int = 0, high: int = MAX_RESOLUTION, **more: Any) -> Any:
    """Declare an INT with its limits."""
    settings: dict[str, Any] = {} if default is None else {"default": default}
    return Input("INT", {**settings, "min": low, "max": high, **more})


def decimal(default: float, low: float, high: float, step: float = 0.01, **more: Any) -> Any:
    """Declare a FLOAT with its limits."""
    return Input("FLOAT", {"default": default, "min": low, "max": high, "step": step, **more})


def choice(*options: str) -> Any:
    """Declare an input with a fixed set of values."""
    return Input(list(options))


def model_file(kind: str, *more: str) -> Any:
    """Declare an input whose choices are the model files of a kind, and some more."""
    return Input(lambda folders: [*folders.model_files(kind), *more])


def optional(declared: Input) -> Any:
    """Declare an input that may be left out: it is then its default, or None."""
    return replace(declared, section="optional")


def hidden(kind: str) -> Any:
    """Declare an input that the executor fills: PROMPT, EXTRA_PNGINFO or UNIQUE_ID."""
    return Input(kind, section="hidden")


IMAGE: Any = value("IMAGE")
MASK: Any = value("MASK")
PROMPT: Any = hidden("PROMPT")
PNGINFO: Any = hidden("EXTRA_PNGINFO")
