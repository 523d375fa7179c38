"""A job's outputs as a caller gets them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from settee.client.errors import JobFailed

if TYPE_CHECKING:
    from settee.client.saving import Saved
    from settee.sealing import Writes

#: Outputs of every kind come in these lists of a worker's result, by what a file is.
KINDS = ("images", "videos", "audio", "models_3d", "texts", "files")
#: Writes what a sealed file holds. Raises ClientError, OSError.
Unseal: TypeAlias = "Callable[[Path, Writes], None]"


@dataclass(frozen=True)
class Output:
    """One file that a job made. Everything but ``data`` is the worker's word, and only a hint."""

    kind: str
    filename: str
    #: ``base64``; ``s3_url`` and ``url``: to be fetched; ``text``; ``path``: on the worker's network volume. Any other
    #: is an output that cannot be saved, unlike those beside it.
    type: str
    data: str = field(repr=False)
    node_id: str | None = None
    media_type: str | None = None
    #: Bytes.
    size: int | None = None
    #: Hex.
    sha256: str | None = None


@dataclass(frozen=True)
class Result:
    """What came of a job that succeeded."""

    job_id: str
    outputs: tuple[Output, ...]
    #: Milliseconds by phase, the worker's and RunPod's.
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: The seeds that the client put in and the worker drew, by ``node.input``.
    seeds: dict[str, int] = field(default_factory=dict)
    #: As it was sent.
    workflow: dict[str, Any] = field(default_factory=dict, repr=False)
    #: Opens what a sealed job has put on S3: behind each address lies a token.
    unseal: Unseal | None = field(default=None, repr=False, compare=False)

    def save(self, out: str | PathLike[str], *, overwrite: bool = False, metadata: bool = False) -> list[Saved]:
        """Save every output into a folder; see :func:`settee.client.saving.save` for names and errors."""
        from settee.client.saving import save

        return save(self, Path(out), overwrite=overwrite, metadata=metadata)


def outputs_of(output: Mapping[str, Any], job_id: str | None = None) -> tuple[Output, ...]:
    """The outputs in a worker's result, in its order. Raises JobFailed for one that is none."""
    found = []
    for kind in KINDS:
        items = output.get(kind) or []
        for item in items if isinstance(items, list) else [items]:
            if not isinstance(item, Mapping) or not all(isinstance(item.get(key), str) for key in ("data", "type")):
                raise JobFailed(
                    f"the worker's result lists something under {kind!r} that is not an output: is it a settee worker?",
                    job_id=job_id,
                )
            found.append(
                Output(
                    kind=kind,
                    filename=str(item.get("filename") or ""),
                    type=item["type"],
                    data=item["data"],
                    node_id=_text(item.get("node_id")),
                    media_type=_text(item.get("media_type")),
                    size=item["size"] if type(item.get("size")) is int else None,
                    sha256=_text(item.get("sha256")),
                )
            )
    return tuple(found)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
