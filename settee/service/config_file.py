"""A service's configuration: one YAML file, checked whole before anything starts.

Sections are pydantic models (:class:`Section`). :func:`checked` raises ConfigError with every problem at once, each
under its dotted name, with near matches; no message holds a value. pydantic-settings' own YAML source keeps none of
that: it takes the last of two equal keys, quotes the line that it cannot parse, and refuses an empty section.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from settee.base.errors import ConfigError, problem_line, problems_of

Problem = dict[str, Any]


class Section(BaseModel):
    """A part of the file. Its fields are strict: a number in quotes is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def subsections(section: type[Section]) -> dict[str, type[Section]]:
    """Return the sections of a section by name."""
    return {
        name: field.annotation
        for name, field in section.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


def filled(data: Any, section: type[Section]) -> Any:
    """Return the data without options that hold nothing, and with all sections."""
    if not isinstance(data, Mapping):
        return data
    below = subsections(section)
    found = {name: value for name, value in data.items() if value is not None and name not in below}
    return found | {name: filled({} if data.get(name) is None else data[name], below[name]) for name in below}


def checked(section: type[S], data: Mapping[Any, Any], name: str, problems: Iterable[Problem] = ()) -> S:
    """Return the section of the data. Raises ConfigError with its problems and those that were found before."""
    found, config = list(problems), None
    try:
        # As JSON, in which a list may become a tuple and a string a path without anything else being bent.
        config = section.model_validate_json(json.dumps(data, default=str, allow_nan=False))
    except ValidationError as error:
        items = error.errors(include_input=False)
        named = problems_of(items, {"missing": "is required", "extra_forbidden": "is not an option"}, index=".{}")
        for item, problem in zip(items, named, strict=True):
            if item["type"] == "extra_forbidden":
                *where, option = map(str, item["loc"])
                known = functools.reduce(
                    lambda part, each: subsections(part)[each], where, cast("type[Section]", section)
                )
                problem["near"] = difflib.get_close_matches(option, known.model_fields, n=1)
        found += named
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{name}: numbers must be finite, keys simple, and nothing may hold itself") from error
    if found or config is None:
        found.sort(key=lambda problem: str(problem["path"]))
        raise ConfigError(f"{name}: {'; '.join(map(problem_line, found))}", details={"problems": found})
    return config


# --- secrets in files and variables ---------------------------------------------------------------------------


def values_of_file(name: Any) -> tuple[str, ...]:
    """Return the lines of the file that an option names, without comments. Raises ValueError.

    A name that leads to no value is a problem: a service that was meant to be guarded must not start without.
    """
    if not isinstance(name, str) or not name.startswith("/"):
        raise ValueError("must be an absolute path")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', 'it is not UTF-8')}") from error
    lines = (line.strip() for line in text.splitlines())
    return _some(line for line in lines if not line.startswith("#"))


def values_of_variable(name: Any) -> tuple[str, ...]:
    """Return the comma-separated values of the environment variable that an option names. Raises ValueError."""
    if not isinstance(name, str) or name not in os.environ:
        raise ValueError("names a variable that is not set")
    return _some(each.strip() for each in os.environ[name].split(","))


def _some(values: Iterable[str]) -> tuple[str, ...]:
    found = tuple(filter(None, values))
    if not found:
        raise ValueError("leads to no value")
    return found
