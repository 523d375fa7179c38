"""The checks of POST /prompt before it queues a prompt, with ComfyUI's error types and bodies.

Node classes are looked at in the order of the graph; ComfyUI walks sets there, so the order of its errors varies.
"""

from __future__ import annotations

import traceback
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from settee.comfyui.workflow import unwrapped
from settee.embedded.folders import Folders
from settee.embedded.nodes import NODES

Error = dict[str, Any]
LONG_LIST = 20
"""Choices longer than this are not repeated in an error."""
_CONVERTED = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass
class Verdict:
    """The error of a whole prompt (None: it can run), the outputs that will be made, and errors by node."""

    error: Error | None = None
    outputs: list[str] = field(default_factory=list)
    node_errors: dict[str, Any] = field(default_factory=dict)


def error(kind: str, message: str, details: str, **extra: Any) -> Error:
    """Return one error as it stands in a response."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def validate(prompt: Any, targets: Container[str] | None, folders: Folders) -> Verdict:
    """Judge a whole prompt; targets limits which output nodes count.

    Values are converted in place, as ComfyUI does ("32" becomes 32). Raises TypeError and the like for things
    that are not a graph at all, which the server answers with 500.
    """
    outputs: list[str] = []
    for node_id in prompt:
        class_type = prompt[node_id].get("class_type")
        if class_type not in NODES:
            return Verdict(_missing_class(node_id, class_type, prompt[node_id]))
        if NODES[class_type].output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Verdict(error("prompt_no_outputs", "Prompt has no outputs", ""))
    judge = _Judge(prompt, folders)
    verdict = Verdict()
    details: list[str] = []
    for output in outputs:
        errors = judge.judge_output(output)
        if errors is None:
            verdict.outputs.append(output)
            continue
        details += [f"{each['message']}: {each['details']}" for each in errors]
        for node_id, found in judge.verdicts.items():
            if found:
                more = {"dependent_outputs": [], "class_type": prompt[node_id]["class_type"]}
                named = verdict.node_errors.setdefault(node_id, {"errors": found, **more})
                named["dependent_outputs"].append(output)
    if not verdict.outputs:
        message = "Prompt outputs failed validation"
        verdict.error = error("prompt_outputs_failed_validation", message, "\n".join(details))
    return verdict


def _missing_class(node_id: str, class_type: Any, node: dict[str, Any]) -> Error:
    title = node.get("_meta", {}).get("title", class_type)
    if class_type is None:
        shown = title or f"ID #{node_id}"
        message = f"Node '{shown}' has no class_type. The workflow may be corrupted or a custom node is missing."
    else:
        message = f"Node '{title}' not found. The custom node may not be installed."
    more = {"node_id": node_id, "class_type": class_type, "node_title": title}
    return error("missing_node_type", message, f"Node ID '#{node_id}'", **more)


class _Judge:
    """Judges the nodes of one prompt, each once."""

    def __init__(self, prompt: dict[str, Any], folders: Folders) -> None:
        self._prompt = prompt
        self._folders = folders
        self._visiting: list[str] = []
        #: None for a node that can run, else its errors: none for one that only depends on a bad node.
        self.verdicts: dict[str, list[Error] | None] = {}

    def judge_output(self, node_id: str) -> list[Error] | None:
        """Judge a node and everything before it; whatever goes wrong becomes an error of the node."""
        try:
            return self._judge(node_id)
        except Exception as problem:  # edge: a graph can be broken in any way, and the caller gets an answer
            self._note_exception(node_id, problem, "exception_during_validation", "Exception when validating node")
            return self.verdicts[node_id]

    def _note_exception(self, node_id: str, problem: Exception, kind: str, message: str, **more: Any) -> None:
        more |= {"exception_type": type_name(problem), "traceback": traceback.format_tb(problem.__traceback__)}
        self.verdicts[node_id] = [error(kind, message, str(problem), **more)]

    def _judge(self, node_id: str) -> list[Error] | None:
        if node_id in self.verdicts:
            return self.verdicts[node_id]
        if node_id in self._visiting:
            return self._cycle(node_id)
        inputs = self._prompt[node_id]["inputs"]
        node = NODES[self._prompt[node_id]["class_type"]]
        errors: list[Error] = []
        ok = True
        for name, declared in node.inputs.items():
            if declared.section == "hidden":
                continue
            if name in inputs:
                config = declared.config(self._folders, node.newer_schema)
                if isinstance(inputs[name], list):
                    ok &= self._judge_link(node_id, inputs[name], name, config, errors)
                else:
                    errors += _judge_value(inputs, name, config, own_check=node.check_image is not None)
            elif declared.section == "required":
                errors.append(error("required_input_missing", "Required input is missing", name, input_name=name))
        if node.check_image is not None:
            constants = {name: None if isinstance(value, list) else value for name, value in inputs.items()}
            if problem := node.check_image(self._folders, constants):
                message = "Custom validation failed for node"
                errors.append(error("custom_validation_failed", message, f"image - {problem}", input_name="image"))
        of_cycle = self.verdicts.get(node_id) or []
        self.verdicts[node_id] = None if ok and not errors else of_cycle + errors
        return self.verdicts[node_id]

    def _cycle(self, node_id: str) -> list[Error] | None:
        around = self._visiting[self._visiting.index(node_id) :]
        details = " -> ".join(f"{each} ({self._prompt[each]['class_type']})" for each in [*around, node_id])
        for each in around:
            more = {"node_id": each, "cycle_nodes": around}
            self.verdicts[each] = [error("dependency_cycle", "Dependency cycle detected", details, **more)]
        return self.verdicts[node_id]

    def _judge_link(self, node_id: str, link: list[Any], name: str, config: list[Any], errors: list[Error]) -> bool:
        """Judge a linked input, adding to errors; False when the node that it comes from is bad."""
        extra = {"input_name": name, "input_config": config}
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            errors.append(error("bad_linked_input", message, name, **extra, received_value=link))
            return True
        source = link[0]
        received = NODES[self._prompt[source]["class_type"]].returns[link[1]]
        if not _fits(received, config[0]):
            details = f"{name}, received_type({received}) mismatch input_type({config[0]})"
            message = "Return type mismatch between linked nodes"
            more = {"received_type": received, "linked_node": link}
            errors.append(error("return_type_mismatch", message, details, **extra, **more))
            return True
        self._visiting.append(node_id)
        try:
            return self._judge(source) is None
        except Exception as problem:  # edge: as in judge_output
            kind, message = "exception_during_inner_validation", "Exception when validating inner node"
            more = {"exception_message": str(problem), "linked_node": link}
            self._note_exception(source, problem, kind, message, **extra, **more)
            return False
        finally:
            self._visiting.pop()


def _judge_value(inputs: dict[str, Any], name: str, config: list[Any], own_check: bool) -> list[Error]:
    """Convert a value to its type, in place, and return what is wrong with it."""
    kind, settings = config
    extra = {"input_name": name, "input_config": config, "received_value": inputs[name]}
    try:
        value = unwrapped(inputs[name])  # a bare list would be a link
        inputs[name] = value = _CONVERTED.get(str(kind), lambda value: value)(value)
    except (TypeError, ValueError, OverflowError) as problem:
        message = f"Failed to convert an input value to a {kind} value"
        details = f"{name}, {inputs[name]}, {problem}"
        return [error("invalid_input_type", message, details, **extra, exception_message=str(problem))]
    extra["received_value"] = value
    if own_check and name == "image":
        return []
    if "min" in settings and value < settings["min"]:
        message = f"Value {value} smaller than min of {settings['min']}"
        return [error("value_smaller_than_min", message, name, **extra)]
    if "max" in settings and value > settings["max"]:
        message = f"Value {value} bigger than max of {settings['max']}"
        return [error("value_bigger_than_max", message, name, **extra)]
    choices = settings.get("options", []) if kind == "COMBO" else kind
    if isinstance(choices, list) and value not in choices:
        options = str(choices)
        if len(choices) > LONG_LIST:
            options, extra["input_config"] = f"(list of length {len(choices)})", None
        return [error("value_not_in_list", "Value not in list", f"{name}: {value!r} not in {options}", **extra)]
    return []


def _fits(received: str, wanted: Any) -> bool:
    """Return True if a link of one type may go into an input; both may name several, ``"INT,FLOAT"``."""
    if wanted == "*" or received == wanted:
        return True
    if not isinstance(wanted, str):
        return False
    return not {part.strip() for part in received.split(",")}.isdisjoint(part.strip() for part in wanted.split(","))


def type_name(problem: BaseException) -> str:
    """Return the exception's class as ComfyUI names it: with its module, unless it is built in."""
    kind = type(problem)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
