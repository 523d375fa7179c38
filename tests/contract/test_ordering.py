"""The order nodes run in, held to the recorded one."""

from __future__ import annotations

from settee.embedded.caching import execution_order
from tests.contract import recording


def test_a_sampling_graph_runs_in_the_recorded_order() -> None:
    submitted = next(e for e in recording.http_events("success_ksampler") if e["path"] == "/prompt")
    graph = submitted["request_body"]["prompt"]
    ran = list(execution_order(graph, ["9"], lambda _: False, lambda node_id: node_id == "9"))
    told = [each.removeprefix("executing:") for each in recording.labels("success_ksampler") if "executing:" in each]
    assert ran == told[:-1]


def test_cached_nodes_are_skipped() -> None:
    submitted = next(e for e in recording.http_events("success_ksampler") if e["path"] == "/prompt")
    graph = submitted["request_body"]["prompt"]
    order = execution_order(graph, ["9"], lambda node_id: node_id in "4567", lambda node_id: node_id == "9")
    assert list(order) == ["3", "8", "9"]
