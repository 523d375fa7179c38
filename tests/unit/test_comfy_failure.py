"""How a failed prompt is explained to the caller."""

from __future__ import annotations

from typing import Any

import pytest

from settee.comfyui.history import failure_of
from settee.comfyui.node_registry import NodeRegistry

GRAPH = {"2": {"class_type": "Saver", "inputs": {}}}


def said(message: str, *, hidden: str = "EXTRA_PNGINFO", module: str = "custom_nodes.pack", sent: Any = None) -> str:
    """The error of a node of this class that raised a TypeError, in a job with this extra_pnginfo."""
    failed = {
        "node_id": "2",
        "node_type": "Saver",
        "exception_type": "TypeError",
        "exception_message": message,
        "traceback": [],
    }
    info = {"Saver": {"python_module": module, "input": {"required": {}, "hidden": {"extra_pnginfo": hidden}}}}
    status = {"status_str": "error", "messages": [["execution_error", failed]]}
    error = failure_of(status, GRAPH, NodeRegistry(info), {"extra_pnginfo": sent} if sent else {})
    assert error is not None
    return error.message


NONE = "'NoneType' object is not subscriptable"


def test_a_node_that_misses_the_editors_graph_is_told_so_with_the_key() -> None:
    assert 'send extra_data {"extra_pnginfo": {"workflow":' in said(NONE)


@pytest.mark.parametrize(
    "other",
    [
        {"message": "unsupported operand type(s)"},
        {"message": NONE, "hidden": "PROMPT"},
        {"message": NONE, "module": "nodes"},
        {"message": NONE, "sent": {"workflow": {}}},
    ],
)
def test_other_errors_get_no_such_advice(other: dict[str, Any]) -> None:
    assert "extra_pnginfo" not in said(**other)
