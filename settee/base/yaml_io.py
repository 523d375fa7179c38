"""YAML files, as people write them: configuration, and lists of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from settee.base.errors import ConfigError


def read_yaml(path: Path | str, name: str) -> Any:
    """Return what a file of YAML, or of JSON (``.json``), holds. ``name``: what an error calls the file.

    Raises ConfigError, which quotes nothing of it, also for an option that is there twice, of which YAML would take the
    last in silence.
    """
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
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix == ".json":  # YAML takes no tabs
            return json.loads(text)
        return yaml.load(text, loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{name} cannot be read: {why}") from error
    except yaml.MarkedYAMLError as error:
        # Neither the error nor its problem: both may quote the line, and that a secret.
        line = f": see line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name} is not valid YAML{line}") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        raise ConfigError(f"{name} is not valid {'JSON' if str(path).endswith('.json') else 'YAML'}") from None
