"""A ComfyUI custom node without nodes: what would end the thread that runs prompts fails the prompt instead.

ComfyUI catches a node's `Exception`. A SystemExit (`sys.exit()` in a node, or in the script that it runs), a
CancelledError, or a fault of the executor's own ends the thread: the server goes on answering, shows the prompt as
running for ever, and runs nothing any more. For a SystemExit Python does not even print a line. In VALIDATE_INPUTS,
which runs in the server's own thread, it ends ComfyUI.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

#: ComfyUI wants to see this in every custom node.
NODE_CLASS_MAPPINGS: dict[str, type] = {}

log = logging.getLogger(__name__)


def surviving(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap PromptExecutor.execute, whose first arguments are itself, the prompt and its id."""

    if getattr(execute, "is_surviving", False):
        return execute  # the image and the supervisor may both have shown this folder to ComfyUI

    @functools.wraps(execute)
    def wrapped(executor: Any, prompt: dict[str, Any], prompt_id: str, *args: Any, **named: Any) -> Any:
        try:
            return execute(executor, prompt, prompt_id, *args, **named)
        except BaseException as error:
            try:
                _fail(executor, prompt, prompt_id, error)
            except Exception as odd:
                # A ComfyUI that is built otherwise: the thread ends, but with a line that says so.
                raise RuntimeError(f"the thread that runs prompts ends: {odd}") from error

    wrapped.is_surviving = True  # type: ignore[attr-defined]
    return wrapped


def refusing(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap ComfyUI's execution._async_map_node_over_list, which calls the methods of nodes by their names.

    An exit within those around a node's own work (VALIDATE_INPUTS, IS_CHANGED) becomes an error as any other of theirs:
    the one refuses the prompt, the other has the node run again.
    """
    if getattr(call, "is_refusing", False):
        return call

    @functools.wraps(call)
    async def wrapped(prompt_id: Any, node_id: Any, node: Any, inputs: Any, name: str, *args: Any, **named: Any) -> Any:
        try:
            return await call(prompt_id, node_id, node, inputs, name, *args, **named)
        except SystemExit as error:
            if name == getattr(node, "FUNCTION", None):
                raise
            raise RuntimeError(f"node {node_id}, {name}: SystemExit: {error}".removesuffix(": ")) from error

    wrapped.is_refusing = True  # type: ignore[attr-defined]
    return wrapped


def _fail(executor: Any, prompt: dict[str, Any], prompt_id: str, error: BaseException) -> None:
    """End the prompt as ComfyUI's own handle_execution_error does."""
    log.error("settee: the thread that runs prompts survives", exc_info=error)
    node_id, executor.server.last_node_id = executor.server.last_node_id or "", None
    executor.reset()  # nothing is known of the state that its caches were left in
    executor.history_result = {"outputs": {}, "meta": {}}
    executor.success = False
    message = {
        "prompt_id": prompt_id,
        "node_id": node_id,
        "node_type": prompt.get(node_id, {}).get("class_type", ""),
        "executed": [],
        "exception_message": f"{type(error).__name__}: {error}".removesuffix(": "),
        "exception_type": type(error).__name__,
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
    }
    executor.add_message("execution_error", message, broadcast=False)


def _install() -> None:
    try:
        import execution

        execution.PromptExecutor.execute = surviving(execution.PromptExecutor.execute)
        execution._async_map_node_over_list = refusing(execution._async_map_node_over_list)
    except Exception as error:
        log.warning("settee: SystemExit ends the thread of prompts: %s: %s", type(error).__name__, error)


_install()
