"""The callers' side: their environment, arguments in Python, options at the command line."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from settee.client.client_errors import UsageError
from settee.client.inject import Given
from settee.client.inject.parameter_places import Parameters
from settee.client.prepared import Wishes

#: A workflow: API format (or the editor's, where the target knows its nodes), or where to read it.
WorkflowLike: TypeAlias = "Mapping[str, Any] | str | PathLike[str]"
#: Files for loaders in natural order of their node ids, or by node id or title.
Files: TypeAlias = "Sequence[str | PathLike[str]] | Mapping[str, str | PathLike[str]]"


#: Variables that are not called as their fields are.
_VARIABLES = {
    "endpoint_id": "RUNPOD_ENDPOINT_ID",
    "endpoint_base_url": "RUNPOD_ENDPOINT_BASE_URL",
    "api_key": "RUNPOD_API_KEY",
}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The variables that the client reads. None: not set; so are empty ones, which templates leave behind."""

    endpoint_id: str | None = None
    #: Of RunPod's API, as the RunPod SDK reads it.
    endpoint_base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    encryption_key: str | None = field(default=None, repr=False)
    #: Of worker-comfyui, as the worker's: the address holds the bucket, or BUCKET_NAME does.
    bucket_endpoint_url: str | None = None
    bucket_access_key_id: str | None = None
    bucket_secret_access_key: str | None = field(default=None, repr=False)
    bucket_name: str | None = None
    #: None: read from the endpoint.
    bucket_region: str | None = None
    #: Address as endpoint/bucket/key.
    bucket_path_style: bool = True
    comfy_org_api_key: str | None = field(default=None, repr=False)

    #: All of it: some of it describes the terminal and the desktop.
    all: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls) -> Environment:
        """Return those of this process, now."""
        names = [each.name for each in fields(cls) if each.name not in ("bucket_path_style", "all")]
        found = {name: os.environ.get(_VARIABLES.get(name, name.upper()), "").strip() or None for name in names}
        path_style = os.environ.get("BUCKET_PATH_STYLE", "").strip().lower()
        is_path_style = path_style not in ("false", "0", "no", "off", "f", "n")
        return cls(**found, bucket_path_style=is_path_style, all=os.environ)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of a job, in addition to what is put into its workflow."""

    #: ``auto``, ``base64``, ``s3``, or an object as in docs/api.md.
    delivery: str | Mapping[str, Any] | None = None
    #: The worker's limit, seconds.
    timeout_s: float | None = None
    #: Models that the job brings (docs/models.md).
    models: tuple[Any, ...] = ()
    allow_partial: bool = False
    #: Scale larger images down to this, pixels; send them as JPEG of this quality.
    max_side: int | None = None
    jpeg: int | None = None

    def as_input(self, environment: Environment) -> dict[str, Any]:
        """Return the keys of the request's input (docs/api.md); None for what is not asked for."""
        return {
            "delivery": self.delivery,
            "timeout_s": self.timeout_s,
            "models": list(self.models) or None,
            "allow_partial": self.allow_partial or None,
            "comfy_org_api_key": environment.comfy_org_api_key,
        }


# --- in Python ------------------------------------------------------------------------------------------------


def files_from(files: Files) -> tuple[Given, ...]:
    """Return files as a caller gives them in Python: a name with a "=" in it is a name."""
    if isinstance(files, (str, bytes)):
        raise UsageError("give files as a list, even of one, or as a mapping of nodes to files")
    if isinstance(files, Mapping):
        return tuple(Given(Path(path), str(node)) for node, path in files.items())
    return tuple(Given(Path(path), None) for path in files)


def parameters_from(values: Mapping[str, Any]) -> Parameters:
    """Return the parameters. Raises TypeError for an unknown name, as Python does."""
    if unknown := values.keys() - Parameters.__dataclass_fields__.keys():
        raise TypeError(f"unknown arguments: {', '.join(sorted(unknown))}")
    lora = values.get("lora", ())
    return Parameters(**{**values, "lora": (lora,) if isinstance(lora, str) else tuple(lora or ())})


def sets_from(values: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Return ``--set``'s texts: as they are, or of a mapping of places to values."""
    if isinstance(values, str):
        return (values,)
    if isinstance(values, Mapping):
        return tuple(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items())
    return tuple(values)


# --- at the command line --------------------------------------------------------------------------------------


def wishes_of(args: argparse.Namespace) -> Wishes:
    """Return what the options put into the workflow. Raises UsageError."""
    files = {"images": args.img, "masks": args.mask, "videos": args.video, "audio": args.audio}
    return Wishes(
        **{kind: tuple(map(parse_given, texts)) for kind, texts in files.items()},
        prompt=args.prompt,
        negative=args.negative,
        seed=args.seed,
        keep_seed=args.keep_seed,
        parameters=parameters_from({name: getattr(args, name) for name in Parameters.__dataclass_fields__}),
        sets=tuple(args.set),
    )


def options_of(args: argparse.Namespace) -> JobOptions:
    """Return the job's options as the command line has them."""
    return JobOptions(
        delivery=args.delivery,
        timeout_s=args.job_timeout,
        models=tuple(args.model),
        allow_partial=args.allow_partial,
        max_side=args.max_side,
        jpeg=args.jpeg,
    )


def parse_given(text: str) -> Given:
    """Parse ``a.png``, ``12=a.png`` or ``Title=a.png``. An existing file whose name is all of ``text`` is that file.

    Of several equals signs, the first counts that an existing file's name follows, else the first. ``~`` is the home
    folder (a shell does not see it behind an equals sign). Raises UsageError for an empty half.
    """
    if not text:
        raise UsageError("the name of a file is empty")
    cuts = [at for at, char in enumerate(text) if char == "="]
    if not cuts or _is_file(text):
        return Given(_path(text))
    cut = next((at for at in cuts if _is_file(text[at + 1 :])), cuts[0])
    node, path = text[:cut].strip(), text[cut + 1 :]
    if not node or not path:
        raise UsageError(f"{text!r}: write NODE=FILE, such as 12=photo.png, or just FILE")
    return Given(_path(path), node)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _is_file(text: str) -> bool:
    try:
        return bool(text) and _path(text).is_file()
    except (OSError, ValueError):  # too long, or with a NUL: no file's name
        return False
