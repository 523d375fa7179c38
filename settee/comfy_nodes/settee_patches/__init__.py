"""A ComfyUI custom node without nodes: faults of ComfyUI's that would cost a job, or the worker, and their cures.

Each is independent of the others: a ComfyUI that is built otherwise keeps that one fault, and its log has a line.
The memory that ComfyUI sees is another one's, which must come earlier: prestartup_script.py.
"""

from __future__ import annotations

import functools
import gc
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

#: ComfyUI wants to see this in every custom node.
NODE_CLASS_MAPPINGS: dict[str, type] = {}

#: As settee/comfyui/isolation.py has it, which cannot be imported here.
SALT_INPUT = "settee_job"

log = logging.getLogger(__name__)


def patch(owner: Any, name: str, wrap: Callable[[Any], Callable[..., Any]]) -> None:
    """Put ``wrap(function)`` in the place of a function, once: the image and the supervisor may both show this folder
    to ComfyUI."""
    found = getattr(owner, name)
    if not getattr(found, "is_patched", False):
        wrapped: Any = functools.wraps(found)(wrap(found))
        wrapped.is_patched = True
        setattr(owner, name, wrapped)


# --- the thread that runs prompts ------------------------------------------------------------------------------
#
# ComfyUI catches a node's `Exception`. A SystemExit (`sys.exit()` in a node, or in the script that it runs), a
# CancelledError, or a fault of the executor's own ends the thread: the server goes on answering, shows the prompt as
# running indefinitely, and runs nothing any more. For a SystemExit Python does not even print a line. In
# VALIDATE_INPUTS, which runs in the server's own thread, it ends ComfyUI.


def surviving(execute: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap PromptExecutor.execute, whose first arguments are itself, the prompt and its id."""

    def wrapped(executor: Any, prompt: dict[str, Any], prompt_id: str, *args: Any, **named: Any) -> Any:
        try:
            return execute(executor, prompt, prompt_id, *args, **named)
        except BaseException as error:
            try:
                _fail(executor, prompt, prompt_id, error)
            except Exception as odd:  # the thread ends, but with a line that says so
                raise RuntimeError(f"the thread that runs prompts ends: {odd}") from error

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


def refusing(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap ComfyUI's execution._async_map_node_over_list, which calls the methods of nodes by their names.

    An exit within those around a node's own work (VALIDATE_INPUTS, IS_CHANGED) becomes an error as any other of theirs:
    the one refuses the prompt, the other has the node run again.
    """

    async def wrapped(prompt_id: Any, node_id: Any, node: Any, inputs: Any, name: str, *args: Any, **named: Any) -> Any:
        try:
            return await call(prompt_id, node_id, node, inputs, name, *args, **named)
        except SystemExit as error:
            if name == getattr(node, "FUNCTION", None):
                raise
            raise RuntimeError(f"node {node_id}, {name}: SystemExit: {error}".removesuffix(": ")) from error

    return wrapped


def _keep_thread() -> None:
    import execution

    patch(execution.PromptExecutor, "execute", surviving)
    patch(execution, "_async_map_node_over_list", refusing)


# --- the salt --------------------------------------------------------------------------------------------------
#
# The worker adds an input to a node that must run again for its job. It is part of the node's cache key, and most
# classes never see it, as they do not declare it. Those that take any name would: V3 classes with `accept_all_inputs`,
# and older ones whose `optional` claims to contain every key. No part of /object_info tells them apart, so the input
# is taken out where ComfyUI makes a node's arguments.
#
# Nodes that expand (loops, for one) run others in their place, which the worker never sees. Savers among them are
# salted as they come, and so are the nodes that they came from: a cached one would not become anything.


def without_salt(get_input_data: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ComfyUI's execution.get_input_data, whose first argument are the inputs as the prompt has them."""

    def wrapped(inputs: dict[str, Any], *args: Any, **named: Any) -> Any:
        return get_input_data({name: value for name, value in inputs.items() if name != SALT_INPUT}, *args, **named)

    return wrapped


def salt_expanded(dynamic_prompt: Any, is_output: Callable[[str], bool]) -> None:
    """Patch ComfyUI's comfy_execution.graph.DynamicPrompt, to which an expanding node's others are added one by one."""
    #: Classes of which a node became savers, at any depth.
    expanding: set[str] = set()

    def salted(node: dict[str, Any]) -> dict[str, Any]:
        return {**node, "inputs": {**node.get("inputs", {}), SALT_INPUT: uuid.uuid4().hex}}

    def salting_init(init: Callable[..., None]) -> Callable[..., None]:
        def wrapped(self: Any, original_prompt: dict[str, Any]) -> None:
            init(self, original_prompt)
            for node in original_prompt.values():
                if node.get("class_type") in expanding:
                    node["inputs"] = salted(node)["inputs"]

        return wrapped

    def salting_add(add: Callable[..., None]) -> Callable[..., None]:
        def wrapped(self: Any, node_id: str, node: dict[str, Any], parent_id: str, *args: Any) -> None:
            if is_output(node["class_type"]) or node["class_type"] in expanding:
                node = salted(node)
                parent: str | None = parent_id
                while parent is not None:
                    expanding.add(self.get_node(parent)["class_type"])
                    parent = self.get_parent_node_id(parent)
            add(self, node_id, node, parent_id, *args)

        return wrapped

    patch(dynamic_prompt, "__init__", salting_init)
    patch(dynamic_prompt, "add_ephemeral_node", salting_add)


def _hide_salt() -> None:
    import execution
    import nodes
    from comfy_execution.graph import DynamicPrompt

    patch(execution, "get_input_data", without_salt)
    salt_expanded(DynamicPrompt, lambda name: getattr(nodes.NODE_CLASS_MAPPINGS.get(name), "OUTPUT_NODE", False))


# --- the garbage collector -------------------------------------------------------------------------------------
#
# After a prompt, when more than 10 s have passed since the last time, ComfyUI's main.py calls gc.collect() under the
# GIL: every object that torch, transformers and the node classes left is looked at, and meanwhile no request is
# answered. gc.freeze() moves what exists to a generation that is never looked at.
#
# It runs when the server starts to listen: every custom node is loaded by then (ComfyUI imports them one by one,
# before), and no model is yet. Later would be wrong: a model frozen while it was in use, and in a reference cycle,
# would keep its memory. Garbage is not collected first: it was 55 of 376,000 objects, and cost 0.2 s a cold start.


async def settee_freeze(_app: Any = None) -> None:
    """Run as an aiohttp start-up hook."""
    gc.freeze()
    log.info("settee: %d loaded objects are out of the garbage collector's rounds", gc.get_freeze_count())


def _freeze_at_start() -> None:
    from server import PromptServer

    hooks = PromptServer.instance.app.on_startup
    if not any(getattr(hook, "__name__", "") == settee_freeze.__name__ for hook in hooks):
        hooks.append(settee_freeze)


# --- folders with models may go again --------------------------------------------------------------------------
#
# ComfyUI lists models below its output folder too (`loras`, `checkpoints` and others, see its main.py). It remembers
# when each folder had changed, and fails from then on where one is gone: no LoRA loader validates any more after a job
# that saved to output/loras, which was wiped. Such a list is made again instead.


def forgetting(cached: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap ComfyUI's folder_paths.cached_filename_list_, which returns None for a list that is to be made."""

    def wrapped(folder_name: str) -> Any:
        try:
            return cached(folder_name)
        except FileNotFoundError:
            return None

    return wrapped


def _forget_folders() -> None:
    import folder_paths

    patch(folder_paths, "cached_filename_list_", forgetting)


# --- installation ----------------------------------------------------------------------------------------------

#: The installation of each, and what stays without it.
_PATCHES = (
    (_keep_thread, "SystemExit ends the thread of prompts"),
    (_hide_salt, f"classes with open-ended inputs see {SALT_INPUT}, and savers of nodes that expand are cached"),
    (_freeze_at_start, "the collector's stall stays"),
    (_forget_folders, "models saved to output end their loaders"),
)
for _install, _without in _PATCHES:
    try:
        _install()
    except Exception as error:
        log.warning("settee: %s: %s: %s", _without, type(error).__name__, error)
