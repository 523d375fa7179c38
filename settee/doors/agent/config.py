"""The agent's configuration: one YAML file, checked whole before anything starts.

:func:`load` reads the file that VISION_SUITE_AGENT_CONFIG names, or another, and raises ConfigError with every problem
at once, each under its dotted name; no message holds a value. What may be in it: :mod:`settee.doors.agent.options`.

This is the one place of the agent that reads the environment: that variable, and the one that `auth.tokens_env` names.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from settee.base.errors import ConfigError, wrong_value
from settee.doors.agent.options import (
    REQUIRED_SAMPLING,
    TOKEN_RULE,
    AgentConfig,
    Auth,
    Callbacks,
    Cleanup,
    ComfyUI,
    Minio,
    Paths,
    Section,
    Server,
    is_token,
    options,
    subsections,
)
from settee.net.addresses import is_loopback

VARIABLE = "VISION_SUITE_AGENT_CONFIG"


def load(path: Path | str | None = None) -> AgentConfig:
    """The configuration of ``path``, or of the file that VISION_SUITE_AGENT_CONFIG names. Raises ConfigError."""
    path = path or os.environ.get(VARIABLE)
    if not path:
        raise ConfigError(f"there is no configuration: name a YAML file with --config or {VARIABLE}")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"the configuration {path} cannot be read: {why}") from error
    return parse(_yaml(text, f"the configuration {path}"), f"the configuration {path}")


def _yaml(text: str, name: str) -> object:
    """What the text holds. An option that is there twice, of which YAML would take the last in silence, is refused."""
    import yaml

    def construct_mapping(self: Any, node: Any, deep: bool = False) -> Any:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for number, key in enumerate(keys):
            if any(key.value == other.value for other in keys[:number]):
                line = key.start_mark.line + 1
                raise ConfigError(f"{name} has {key.value} a second time in line {line}: leave one of them out")
        return yaml.SafeLoader.construct_mapping(self, node, deep)

    loader: Any = type("Loader", (yaml.SafeLoader,), {"construct_mapping": construct_mapping})
    try:
        return yaml.load(text, loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        # Neither the error nor its problem: both may quote the line, and that a secret.
        line = f": see line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name} is not valid YAML{line}") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ConfigError(f"{name} is not valid YAML") from None


def parse(data: object, name: str = "the configuration") -> AgentConfig:
    """What a YAML file holds, checked, with the tokens of files and the environment. Raises ConfigError."""
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{name} must hold options by name: see deploy/config.example.yaml")
    problems: list[dict[str, Any]] = []
    data, tokens = _with_tokens(_without_empty(data, AgentConfig), problems)
    config = None
    try:
        # As JSON, in which a list may become a tuple and a text a path without anything else being bent.
        config = AgentConfig.model_validate_json(json.dumps(data, default=str, allow_nan=False))
    except ValidationError as error:
        problems += _named(error)
    except (ValueError, RecursionError, TypeError) as error:
        raise ConfigError(f"{name}: numbers must be finite, keys simple, and nothing may hold itself") from error
    server = data.get("server")
    host = server.get("host") if isinstance(server, Mapping) else None
    if isinstance(host, str) and host and not tokens and not is_loopback(host):
        problems.append(
            {
                "path": "server.host",
                "problem": "must be 127.0.0.1 (or another loopback address) while no token is set in auth",
            }
        )
    if problems or config is None:
        raise _error(name, problems)
    return config


def _without_empty(data: Mapping[Any, Any], section: type[Section]) -> dict[Any, Any]:
    """The data without options that hold nothing; a section that holds nothing is there."""
    below = subsections(section)
    found = {name: value for name, value in data.items() if value is not None and name not in below}
    for name, part in below.items():
        value = {} if data.get(name) is None else data[name]
        found[name] = _without_empty(value, part) if isinstance(value, Mapping) else value
    return found


def _error(name: str, problems: list[dict[str, Any]]) -> ConfigError:
    problems.sort(key=lambda problem: str(problem["path"]))
    lines = []
    for problem in problems:
        near = f"; did you mean {problem['near'][0]!r}?" if problem.get("near") else ""
        lines.append(f"{problem['path']}: {problem['problem']}{near}".removeprefix(": "))
    return ConfigError(f"{name}: {'; '.join(lines)}", details={"problems": problems})


def _named(error: ValidationError) -> Iterable[dict[str, Any]]:
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        where = [str(part) for part in item["loc"]]
        problem: dict[str, Any] = {"path": ".".join(where), "problem": _words(item)}
        if item["type"] == "extra_forbidden":
            problem["near"] = difflib.get_close_matches(where[-1], _known(where[:-1]), n=1)
        yield problem


def _words(item: Mapping[str, Any]) -> str:
    own = {"missing": "is required", "extra_forbidden": "is not an option"}
    return own.get(item["type"]) or wrong_value(item)


def _known(where: list[str]) -> list[str]:
    section: type[Section] = AgentConfig
    for part in where:
        section = subsections(section)[part]
    return list(section.model_fields)


# --- tokens ----------------------------------------------------------------------------------------------


def _with_tokens(data: dict[str, Any], problems: list[dict[str, Any]]) -> tuple[dict[str, Any], list[Any]]:
    """The data with the tokens of ``tokens_file`` and ``tokens_env`` among ``auth.tokens``, and all of these.

    What names no token is a problem: an agent that was meant to be guarded must not start open.
    """
    auth = data.get("auth")
    if not isinstance(auth, Mapping):
        return data, []
    written = auth.get("tokens")
    tokens = list(written) if isinstance(written, (list, tuple)) else []
    for option, read in (("tokens_file", _file_tokens), ("tokens_env", _variable_tokens)):
        name = auth.get(option)
        if not isinstance(name, str) or not name:
            continue
        try:
            found = read(name)
            if not found:
                raise ValueError("holds no token")
            if not all(map(is_token, found)):
                raise ValueError(f"holds a token that cannot be sent: each {TOKEN_RULE}")
        except ValueError as error:
            problems.append({"path": f"auth.{option}", "problem": str(error)})
        else:
            tokens += found
    if written is None or isinstance(written, (list, tuple)):
        data = {**data, "auth": {**auth, "tokens": tokens}}
    return data, tokens


def _file_tokens(name: str) -> list[str]:
    try:
        text = Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _variable_tokens(name: str) -> list[str]:
    value = os.environ.get(name)
    if value is None:
        raise ValueError("names a variable that is not set")
    return [token.strip() for token in value.split(",") if token.strip()]


__all__ = [
    "REQUIRED_SAMPLING",
    "VARIABLE",
    "AgentConfig",
    "Auth",
    "Callbacks",
    "Cleanup",
    "ComfyUI",
    "Minio",
    "Paths",
    "Section",
    "Server",
    "load",
    "options",
    "parse",
]
