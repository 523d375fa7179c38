"""A ComfyUI custom node without nodes: it keeps the worker's salt from classes with open-ended inputs.

The worker adds an input to a node that must run again for its job (settee/workflow.py). It is part of the node's cache
key, and most classes never see it, as they do not declare it. Those that take any name would: V3 classes with
`accept_all_inputs`, and older ones whose `optional` claims to contain every key. No part of /object_info tells them
apart, so the input is taken out where ComfyUI makes a node's arguments.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

#: ComfyUI wants to see this in every custom node.
NODE_CLASS_MAPPINGS: dict[str, type] = {}

#: SALT_INPUT in settee/workflow.py, which cannot be imported here.
SALT_INPUT = "settee_job"

log = logging.getLogger(__name__)


def without_salt(get_input_data: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ComfyUI's execution.get_input_data, whose first argument are the inputs as the prompt has them."""

    if getattr(get_input_data, "is_without_salt", False):
        return get_input_data  # the image and the supervisor may both have shown this folder to ComfyUI

    @functools.wraps(get_input_data)
    def wrapped(inputs: dict[str, Any], *args: Any, **named: Any) -> Any:
        if SALT_INPUT in inputs:
            inputs = {name: value for name, value in inputs.items() if name != SALT_INPUT}
        return get_input_data(inputs, *args, **named)

    wrapped.is_without_salt = True  # type: ignore[attr-defined]
    return wrapped


def _install() -> None:
    try:
        import execution

        execution.get_input_data = without_salt(execution.get_input_data)
    except Exception as error:
        # A ComfyUI that is built otherwise only gives such classes one argument more.
        log.warning("settee: classes with open-ended inputs see %s: %s: %s", SALT_INPUT, type(error).__name__, error)


_install()
