"""What POST /prompt checks before it queues a prompt, with ComfyUI's error types and bodies.

Node classes are looked at in the order of the graph; ComfyUI walks sets there, so the order of its errors varies.
"""

from __future__ import annotations

import traceback
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from settee.embedded.folders import Folders
from settee.embedded.nodes import NODES
from settee.embedded.nodes.base import Inputs, Node

Error = dict[str, Any]
LONG_LIST = 20
"""Choices longer than this are not repeated in an error."""


@dataclass
class Verdict:
    """Whether a prompt can run, what is wrong with it, and the outputs that will be made."""

    ok: bool
    error: Error | None = None
    outputs: list[str] = field(default_factory=list)
    node_errors: dict[str, Any] = field(default_factory=dict)


@dataclass
class _NodeVerdict:
    ok: bool
    errors: list[Error]


def validate(prompt: Any, targets: Container[str] | None, folders: Folders) -> Verdict:
    """Judge a whole prompt; targets limits which output nodes count.

    Values are converted in place, as ComfyUI does ("32" becomes 32). Raises TypeError and the like for things
    that are no graph at all, which the server answers with 500.
    """
    outputs: list[str] = []
    for node_id in prompt:
        class_type = prompt[node_id].get("class_type")
        if class_type not in NODES:
            return Verdict(False, _missing_class(node_id, class_type, prompt[node_id]))
        if NODES[class_type].spec.output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Verdict(False, error("prompt_no_outputs", "Prompt has no outputs", ""))
    return _judge_outputs(prompt, outputs, folders)


def error(kind: str, message: str, details: str, **extra: Any) -> Error:
    """One error as it stands in a response."""
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _missing_class(node_id: str, class_type: Any, node: dict[str, Any]) -> Error:
    title = node.get("_meta", {}).get("title", class_type)
    if class_type is None:
        shown = title or f"ID #{node_id}"
        message = f"Node '{shown}' has no class_type. The workflow may be corrupted or a custom node is missing."
    else:
        message = f"Node '{title}' not found. The custom node may not be installed."
    more = {"node_id": node_id, "class_type": class_type, "node_title": title}
    return error("missing_node_type", message, f"Node ID '#{node_id}'", **more)


def _judge_outputs(prompt: dict[str, Any], outputs: list[str], folders: Folders) -> Verdict:
    judge = _Judge(prompt, folders)
    good: list[str] = []
    details: list[str] = []
    node_errors: dict[str, Any] = {}
    for output in outputs:
        verdict = judge.judge_output(output)
        if verdict.ok:
            good.append(output)
            continue
        details += [f"{each['message']}: {each['details']}" for each in verdict.errors]
        for node_id, found in judge.verdicts.items():
            # A node is named for its own errors only, not for those of the nodes it depends on.
            if not found.ok and found.errors:
                named = node_errors.setdefault(
                    node_id,
                    {
                        "errors": found.errors,
                        "dependent_outputs": [],
                        "class_type": prompt[node_id]["class_type"],
                    },
                )
                named["dependent_outputs"].append(output)
    if good:
        return Verdict(True, None, good, node_errors)
    message = "Prompt outputs failed validation"
    return Verdict(False, error("prompt_outputs_failed_validation", message, "\n".join(details)), [], node_errors)


class _Judge:
    """Judges the nodes of one prompt, each once."""

    def __init__(self, prompt: dict[str, Any], folders: Folders) -> None:
        self._prompt = prompt
        self._folders = folders
        self._visiting: list[str] = []
        self.verdicts: dict[str, _NodeVerdict] = {}

    def judge_output(self, node_id: str) -> _NodeVerdict:
        """Judge a node and everything before it; whatever goes wrong becomes an error of the node."""
        try:
            return self._judge(node_id)
        except Exception as problem:  # edge: a graph can be broken in any way, and the caller must be told
            found = error(
                "exception_during_validation",
                "Exception when validating node",
                str(problem),
                exception_type=type_name(problem),
                traceback=traceback.format_tb(problem.__traceback__),
            )
            self.verdicts[node_id] = _NodeVerdict(False, [found])
            return self.verdicts[node_id]

    def _judge(self, node_id: str) -> _NodeVerdict:
        if node_id in self.verdicts:
            return self.verdicts[node_id]
        if node_id in self._visiting:
            return self._cycle(node_id)
        inputs = self._prompt[node_id]["inputs"]
        node_class = NODES[self._prompt[node_id]["class_type"]]
        errors: list[Error] = []
        ok = True
        for kind, declared in node_class.spec.inputs(self._folders).items():
            for name in declared:
                if name in inputs:
                    ok &= self._judge_input(node_id, inputs, name, declared, node_class, errors)
                elif kind == "required":
                    errors.append(error("required_input_missing", "Required input is missing", name, input_name=name))
        errors += self._own_check(node_class, inputs)
        of_cycle = self.verdicts[node_id].errors if node_id in self.verdicts else []
        self.verdicts[node_id] = _NodeVerdict(ok and not errors, of_cycle + errors)
        return self.verdicts[node_id]

    def _cycle(self, node_id: str) -> _NodeVerdict:
        around = self._visiting[self._visiting.index(node_id) :]
        details = " -> ".join(f"{each} ({self._prompt[each]['class_type']})" for each in [*around, node_id])
        for each in around:
            more = {"node_id": each, "cycle_nodes": around}
            found = error("dependency_cycle", "Dependency cycle detected", details, **more)
            self.verdicts[each] = _NodeVerdict(False, [found])
        return self.verdicts[node_id]

    def _judge_input(
        self,
        node_id: str,
        inputs: dict[str, Any],
        name: str,
        declared: Inputs,
        node_class: type[Node],
        errors: list[Error],
    ) -> bool:
        """Judge one input, adding to errors; False when a node it comes from is bad."""
        kind, settings = (*declared[name], {})[:2]
        config = [kind, settings]
        if isinstance(inputs[name], list):
            return self._judge_link(node_id, inputs[name], name, config, errors)
        try:
            inputs[name] = _converted(inputs[name], kind)
        except (TypeError, ValueError, OverflowError) as problem:
            message = f"Failed to convert an input value to a {kind} value"
            details = f"{name}, {inputs[name]}, {problem}"
            more = {"received_value": inputs[name], "exception_message": str(problem)}
            errors.append(error("invalid_input_type", message, details, input_name=name, input_config=config, **more))
            return True
        if name not in node_class.checks:
            errors += _limits(inputs[name], name, config)
        return True

    def _judge_link(self, node_id: str, link: list[Any], name: str, config: list[Any], errors: list[Error]) -> bool:
        extra = {"input_name": name, "input_config": config}
        if len(link) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            errors.append(error("bad_linked_input", message, name, **extra, received_value=link))
            return True
        source = link[0]
        received = NODES[self._prompt[source]["class_type"]].spec.returns[link[1]]
        if not _fits(received, config[0]):
            details = f"{name}, received_type({received}) mismatch input_type({config[0]})"
            message = "Return type mismatch between linked nodes"
            more = {"received_type": received, "linked_node": link}
            errors.append(error("return_type_mismatch", message, details, **extra, **more))
            return True
        self._visiting.append(node_id)
        try:
            return self._judge(source).ok
        except Exception as problem:  # edge: as in judge_output
            found = error(
                "exception_during_inner_validation",
                "Exception when validating inner node",
                str(problem),
                **extra,
                exception_message=str(problem),
                exception_type=type_name(problem),
                traceback=traceback.format_tb(problem.__traceback__),
                linked_node=link,
            )
            self.verdicts[source] = _NodeVerdict(False, [found])
            return False
        finally:
            self._visiting.pop()

    def _own_check(self, node_class: type[Node], inputs: dict[str, Any]) -> list[Error]:
        if not node_class.checks:
            return []
        constants = {name: None if isinstance(value, list) else value for name, value in inputs.items()}
        problem = node_class.check(self._folders, constants)
        if problem is None:
            return []
        message = "Custom validation failed for node"
        return [
            error("custom_validation_failed", message, f"{name} - {problem}", input_name=name)
            for name in node_class.checks
            if name in inputs
        ]


def _converted(value: Any, kind: Any) -> Any:
    """The value as its type wants it; raises ValueError or TypeError."""
    if isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]  # how a list is given as a value: a bare one would be a link
    if isinstance(kind, str) and kind in ("INT", "FLOAT", "STRING", "BOOLEAN"):
        return {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}[kind](value)
    return value


def _limits(value: Any, name: str, config: list[Any]) -> list[Error]:
    kind, settings = config
    extra = {"input_name": name, "input_config": config, "received_value": value}
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
    """Whether a link of one type may go into an input; both may name several, ``"INT,FLOAT"``."""
    if wanted == "*" or received == wanted:
        return True
    if not isinstance(wanted, str):
        return False
    return not {part.strip() for part in received.split(",")}.isdisjoint(part.strip() for part in wanted.split(","))


def type_name(problem: BaseException) -> str:
    """The exception's class as ComfyUI names it: with its module, unless it is built in."""
    kind = type(problem)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
