"""The agent's configuration: what its YAML file holds, with the secrets of files and variables.

The options are in :mod:`settee.doors.agent.options`, how a file is read and checked in
:mod:`settee.service.config_file`. VISION_SUITE_AGENT_CONFIG names the file where no argument does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from settee.base.errors import ConfigError
from settee.doors.agent.options import TOKEN_RULE, AgentConfig, is_signing_secret, is_token
from settee.net.addresses import is_loopback
from settee.service.config_file import Problem, checked, filled, read, with_secrets
from settee.service.webhooks import SECRET_RULE

VARIABLE = "VISION_SUITE_AGENT_CONFIG"
EXAMPLE = "deploy/config.example.yaml"


def load(path: Path | str | None = None) -> AgentConfig:
    """Return the configuration of ``path``, or of the file that VISION_SUITE_AGENT_CONFIG names. Raises ConfigError."""
    path = path or os.environ.get(VARIABLE)
    if not path:
        raise ConfigError(f"there is no configuration: name a YAML file with --config or {VARIABLE}")
    return parse(read(path), f"the configuration {path}")


def parse(data: object, name: str = "the configuration") -> AgentConfig:
    """Return what a YAML file holds, checked. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    given = filled(data, AgentConfig, name, EXAMPLE)
    rule = f"holds a token that cannot be sent: each {TOKEN_RULE}"
    given, tokens = with_secrets(given, "auth", "tokens", is_token, rule, problems)
    rule = f"holds a secret that cannot sign: each {SECRET_RULE}"
    given, _ = with_secrets(given, "callbacks", "signing_secrets", is_signing_secret, rule, problems)
    server = given.get("server")
    host = server.get("host") if isinstance(server, Mapping) else None
    if isinstance(host, str) and host and not tokens and not is_loopback(host):
        problem = "must be 127.0.0.1 (or another loopback address) while no token is set in auth"
        problems.append({"path": "server.host", "problem": problem})
    return checked(AgentConfig, given, name, problems)


__all__ = ["VARIABLE", "AgentConfig", "load", "parse"]
