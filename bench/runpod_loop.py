"""What RunPod's loop costs per job: the SDK's own with a handler that returns a constant, against our worker.

The control plane is on loopback. "queue" is from the first job's take to the last one's result with 20 short jobs
waiting; "gap" from one job's result to the next one's take; "job" from a job's take to its result, of which the
engine's and ComfyUI's own time (`timings.total`) is taken off: what is left is the door, the SDK and HTTP.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from tests.support.control_plane import ControlPlane, Event
from tests.support.rig import empty
from tests.support.worker import REAL, STUB, WorkerProcess

JOBS = 20
CONSTANT = ("-m", "bench.constant_worker")
GIVE = {"workflow": {"1": {"class_type": "Give", "inputs": {"size": 48}}}}


@dataclass
class Measured:
    """Milliseconds."""

    queue: float
    gap: float
    job: float

    def __str__(self) -> str:
        return f"queue {self.queue:9.1f} ms   gap {self.gap:7.2f} ms   job {self.job:7.2f} ms"


def measure(command: tuple[str, ...], job_inputs: list[Any], **env: str) -> Measured:
    with ControlPlane() as runpod, WorkerProcess(env={**runpod.env(), **env}, command=command) as worker:
        try:
            runpod.wait_result(runpod.submit(job_inputs[0]), timeout_s=60)
            ids = [f"job-{number}" for number in range(len(job_inputs))]
            before = len(runpod.events)
            runpod.submit_raw(*({"id": job_id, "input": item} for job_id, item in zip(ids, job_inputs, strict=True)))
            runpod.wait_result(ids[-1], timeout_s=120)
        except TimeoutError as error:
            sys.exit(f"{error}\n{worker.log}")
        return _measured([event for event in runpod.events[before:] if event.kind in ("take", "result")])


def _measured(events: list[Event]) -> Measured:
    takes = [event for event in events if event.kind == "take"]
    results = [event for event in events if event.kind == "result"]
    jobs = []
    for take, result in zip(takes, results, strict=True):
        engine_ms = result.body["output"].get("timings", {}).get("total", 0.0)
        jobs.append((result.at - take.at) * 1000 - engine_ms)
    gaps = [(take.at - result.at) * 1000 for take, result in zip(takes[1:], results, strict=False)]
    return Measured(
        queue=(results[-1].at - takes[0].at) * 1000, gap=statistics.median(gaps), job=statistics.median(jobs)
    )


def main() -> None:
    stock = measure(CONSTANT, [{}] * JOBS, RUNPOD_LOG_LEVEL="INFO")
    print(f"stock SDK loop, a constant handler   {stock}")
    # The stub's answer says 1 ms of engine time that it does not take.
    ours = measure(STUB, [GIVE] * JOBS)
    ours.job += 1.0
    print(f"our loop and door, a constant engine {ours}   queue ratio {ours.queue / stock.queue:.3f}")
    with tempfile.TemporaryDirectory() as folder:
        real = measure(
            REAL,
            [{"workflow": empty(colour=number)} for number in range(JOBS)],
            COMFY_COMMAND=f'"{sys.executable}" -m settee.embedded',
            COMFY_PORT="0",
            WORKSPACE_DIR=folder,
        )
    print(f"rp_handler.py, embedded ComfyUI      {real}   queue ratio {real.queue / stock.queue:.3f}")
    print(f"gap: {ours.gap:.2f} ms (target: at most 50)")
    print(f"job taken to result posted: {ours.job - stock.job:+.2f} ms of a constant handler's (target: at most +10)")


if __name__ == "__main__":
    main()
