"""What callers give in Python and on the command line, as the wishes that it means."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from settee.client.errors import UsageError
from settee.client.inject.media import Given, parse_given
from settee.client.inject.parameters import Parameters

#: A workflow: API format (or the editor's, where the target knows its nodes), or where to read it.
WorkflowLike: TypeAlias = "Mapping[str, Any] | str | PathLike[str]"
#: Files for loaders in natural order of their node ids, or by node id or title.
Files: TypeAlias = "Sequence[str | PathLike[str]] | Mapping[str, str | PathLike[str]]"


def files_from(files: Files) -> tuple[Given, ...]:
    """Files as a caller gives them in Python: a name with a "=" in it is a name."""
    if isinstance(files, (str, bytes)):
        raise UsageError("give files as a list, even of one, or as a mapping of nodes to files")
    if isinstance(files, Mapping):
        return tuple(Given(Path(path), str(node)) for node, path in files.items())
    return tuple(Given(Path(path), None) for path in files)


def files_from_texts(texts: Sequence[str]) -> tuple[Given, ...]:
    """Files as the command line has them: ``a.png``, ``12=a.png``, ``Title=a.png``."""
    return tuple(parse_given(text) for text in texts)


def parameters_from(values: Mapping[str, Any]) -> Parameters:
    """Raises TypeError for a name that is no parameter's, as Python does."""
    if unknown := values.keys() - Parameters.__dataclass_fields__.keys():
        raise TypeError(f"unknown arguments: {', '.join(sorted(unknown))}")
    lora = values.get("lora", ())
    return Parameters(**{**values, "lora": (lora,) if isinstance(lora, str) else tuple(lora or ())})


def sets_from(values: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """``--set``'s texts: as they are, or of a mapping of places to values."""
    if isinstance(values, str):
        return (values,)
    if isinstance(values, Mapping):
        return tuple(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items())
    return tuple(values)


def workflow_from(workflow: WorkflowLike) -> tuple[dict[str, Any], str]:
    """(the workflow, checked; what to call it). Raises UsageError."""
    from settee.client import sources

    if isinstance(workflow, Mapping):
        return sources.checked(workflow, "the workflow"), "the workflow"
    # A service has no standard input.
    stdin = sys.stdin.buffer if sys.stdin is not None else io.BytesIO()
    source = sources.read(os.fspath(workflow), stdin=stdin)
    return source.data, source.shown
