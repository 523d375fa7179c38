"""Counters and gauges for Prometheus, as GET /metrics shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from settee.base.job import Status
from settee.service.events import Step

#: Seconds; a render takes from a second to an hour.
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800, 3600)


class Metrics:
    """One set for an agent. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.jobs = Counter(
            "settee_jobs_total", "Jobs that ended, by outcome", ["outcome", "reason"], registry=self._registry
        )
        self.refused = Counter(
            "settee_refused_total", "Dispatches that were refused, by status", ["status"], registry=self._registry
        )
        self._phases = Histogram(
            "settee_phase_seconds", "Time of each phase of a job", ["phase"], registry=self._registry, buckets=_BUCKETS
        )
        self.staged = Counter("settee_staged_bytes_total", "Bytes of models fetched for jobs", registry=self._registry)
        self.delivered = Counter("settee_delivered_bytes_total", "Bytes of outputs uploaded", registry=self._registry)
        self._restarts = Gauge(
            "settee_comfyui_restarts", "Times that ComfyUI was started again", registry=self._registry
        )
        self._depth = Gauge("settee_queue_depth", "Jobs that are accepted and have not ended", registry=self._registry)
        self._callbacks = Gauge(
            "settee_callbacks_pending", "Terminal callbacks that are not delivered yet", registry=self._registry
        )

    def watch(self, *, restarts: Callable[[], int], depth: Callable[[], int], callbacks: Callable[[], int]) -> None:
        """State where the present values come from; they are asked for at every scrape."""
        self._restarts.set_function(restarts)
        self._depth.set_function(depth)
        self._callbacks.set_function(callbacks)

    def on_step(self, step: Step) -> None:
        """Count a job that ended."""
        outcome = step.outcome
        if outcome is not None:
            name = "SUCCESS" if step.state is Status.SUCCEEDED else step.state.name
            self.jobs.labels(name, outcome.reason_code).inc()
            self.phases(outcome.timings)
            self.delivered.inc(outcome.delivered_bytes)

    def phases(self, timings: Mapping[str, float]) -> None:
        """``timings`` are milliseconds by phase, as in a Result."""
        for phase, milliseconds in timings.items():
            self._phases.labels(phase).observe(milliseconds / 1000)

    def text(self) -> bytes:
        """Return them in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
