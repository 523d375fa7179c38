"""What a node is: what /object_info says of it, and what it does."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image

from settee.embedded.broadcast import PreviewImage
from settee.embedded.faults import Faults, Stats
from settee.embedded.folders import Folders

MAX_RESOLUTION = 16384
"""The largest width or height ComfyUI's nodes accept, in pixels."""

InputType = tuple[Any, ...]
"""A type name or a list of choices, then optionally its settings: ``("INT", {"default": 1})``."""
Inputs = Mapping[str, InputType]


class Interrupted(Exception):
    """The running prompt was interrupted."""


class ImageBatch(list[Image.Image]):
    """An IMAGE: pictures of one size and mode, RGB or RGBA, 8 bits a channel."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self[0].size

    def each(self, change: Callable[[Image.Image], Image.Image]) -> ImageBatch:
        """The batch with every picture changed."""
        return ImageBatch(change(image) for image in self)

    def __str__(self) -> str:
        width, height = self.size
        return f"images({len(self)} of {width}x{height}, {self[0].mode})"


class MaskBatch(list[Image.Image]):
    """A MASK: pictures of mode L, 255 where the mask is 1.0."""

    def __str__(self) -> str:
        width, height = self[0].size
        return f"masks({len(self)} of {width}x{height})"


@dataclass(frozen=True)
class NodeSpec:
    """What /object_info says of a class. The prose ComfyUI adds (tooltips, descriptions) is left out."""

    name: str
    category: str
    required: Inputs | Callable[[Folders], Inputs] = field(default_factory=dict)
    optional: Inputs = field(default_factory=dict)
    hidden: Mapping[str, str] = field(default_factory=dict)
    returns: tuple[str, ...] = ()
    return_names: tuple[str, ...] | None = None
    output_node: bool = False
    module: str = "nodes"
    display_name: str | None = ""
    experimental: bool = False
    deprecated: bool = False
    newer_schema: bool = False
    """Written for ComfyUI's second node API: lists of choices become COMBO, and entries have a few more keys."""
    stand_in: bool = False
    """Takes a model's file for its hash only: /object_info says so, and whoever runs such a node is to be told."""
    intermediate_output: bool = False
    """What it showed is shown again when its result comes from the cache, without being an output."""

    def inputs(self, folders: Folders) -> dict[str, Inputs]:
        """The inputs by kind; kinds without inputs are left out."""
        required = self.required(folders) if callable(self.required) else self.required
        kinds = {"required": required, "optional": self.optional}
        if self.newer_schema:
            kinds = {kind: {name: _newer(given) for name, given in inputs.items()} for kind, inputs in kinds.items()}
        return {kind: inputs for kind, inputs in kinds.items() if inputs}

    def info(self, folders: Folders) -> dict[str, Any]:
        """The entry of /object_info."""
        inputs: dict[str, Mapping[str, Any]] = dict(self.inputs(folders))
        if self.hidden:
            newer = {name: [kind] for name, kind in self.hidden.items()}
            inputs["hidden"] = newer if self.newer_schema else self.hidden
        info = {
            "input": inputs,
            "input_order": {kind: list(named) for kind, named in inputs.items()},
            "is_input_list": False,
            "output": self.returns,
            "output_is_list": [False] * len(self.returns),
            "output_name": self.return_names or self.returns,
            "name": self.name,
            "display_name": self.name if self.display_name == "" else self.display_name,
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
        return info | {name: True for name, is_so in marks.items() if is_so}


@dataclass(frozen=True)
class Outcome:
    """What a node gives: one value per output, and what it shows (the ``output`` of ``executed``)."""

    values: tuple[Any, ...] = ()
    ui: dict[str, list[Any]] | None = None


@dataclass
class Memory:
    """The memory of a GPU that is not there, for SetteeFault."""

    raised: int = 0
    """How many out-of-memory errors there were."""
    full: bool = False
    freed: bool = False

    def run_out(self) -> None:
        """Note an out-of-memory error."""
        self.raised += 1
        self.full, self.freed = True, False

    def free(self) -> None:
        """Note that /free was posted, which counts only when memory was full."""
        self.full, self.freed = False, self.full or self.freed

    def take_freed(self) -> bool:
        """Whether it was freed since it was full; the next time it must be freed again."""
        freed, self.freed = self.freed, False
        return freed


@dataclass
class NodeEnv:
    """What a running node can use of the server."""

    folders: Folders
    faults: Faults
    stats: Stats
    memory: Memory
    log: logging.Logger
    disable_metadata: bool = False
    preview_size: int | None = None
    """The largest side of a preview in pixels; None when previews are off."""
    report: Callable[[float, float, PreviewImage | None], None] = lambda value, total, preview: None
    """Progress of the running node: value, total, preview. Raises Interrupted."""
    send: Callable[[PreviewImage], None] = lambda picture: None
    """A picture over the socket, without metadata, to whoever submitted the prompt."""
    enqueue: Callable[[dict[str, Any], bool], None] = lambda prompt, is_told: None
    """Queue another prompt ahead of all others; is_told: its events go where those of the running one do."""
    check_interrupted: Callable[[], None] = lambda: None
    """Raises Interrupted when the running prompt should end."""


class Node(ABC):
    """A node class. One object lives as long as prompts keep naming its class under the same node id."""

    spec: ClassVar[NodeSpec]
    has_fingerprint: ClassVar[bool] = False
    checks: ClassVar[tuple[str, ...]] = ()
    """Inputs that ``check`` judges; the ordinary checks (choices, min, max) leave them alone."""

    @classmethod
    def fingerprint(cls, env: NodeEnv, inputs: dict[str, Any]) -> Any:
        """A value that differs when the node's result would (ComfyUI's IS_CHANGED). Links are None."""
        raise NotImplementedError

    @classmethod
    def check(cls, folders: Folders, inputs: dict[str, Any]) -> str | None:
        """What is wrong with the inputs (ComfyUI's VALIDATE_INPUTS), None when nothing is."""
        raise NotImplementedError

    @abstractmethod
    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        """Do the node's work with its inputs by name, hidden ones among them."""


def is_link(value: Any) -> bool:
    """Whether an input comes from another node: ``[node_id, slot]``."""
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], (int, float))
    )


def _newer(declared: InputType) -> InputType:
    """The input as the second node API describes it."""
    kind, settings = (*declared, {})[:2]
    return (
        ("COMBO", {"multiselect": False, "options": kind, **settings}) if isinstance(kind, list) else (kind, settings)
    )


def integer(default: int | None = None, low: int = 0, high: int = MAX_RESOLUTION, **more: Any) -> InputType:
    """An INT input with its limits."""
    settings: dict[str, Any] = {} if default is None else {"default": default}
    return ("INT", {**settings, "min": low, "max": high, **more})


def decimal(default: float, low: float, high: float, step: float = 0.01) -> InputType:
    """A FLOAT input with its limits."""
    return ("FLOAT", {"default": default, "min": low, "max": high, "step": step})


def choice(*options: str) -> InputType:
    """An input with a fixed set of values."""
    return (list(options),)


def _inverted_bytes() -> list[int]:
    """What 1 - x becomes for each byte when computed in 32-bit floats and cut to a byte, as ComfyUI does."""
    stored = array("f", (value / 255 for value in range(256)))
    turned = array("f", (1.0 - value for value in stored))
    return [int(value) for value in array("f", (255.0 * value for value in turned))]


_INVERTED = _inverted_bytes()


def inverted(image: Image.Image) -> Image.Image:
    """1 - x for every channel."""
    return image.point(_INVERTED * len(image.getbands()))
