"""The smart client: send any workflow to a RunPod endpoint, a local worker or a bare ComfyUI.

    from settee.client import Endpoint

    result = Endpoint("http://127.0.0.1:8000").run("workflow.json", images=["photo.png"], prompt="a fox in the snow")
    result.save("out")

The command line is :mod:`settee.client.cli` (``settee-client``, ``client.py``). Everything is imported when it is first
used: `client.py --help` must not wait for what it does not need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from settee.client.arguments import Environment, JobOptions
    from settee.client.asynchronous import AsyncEndpoint, AsyncJob
    from settee.client.client_errors import (
        Ambiguous,
        AuthError,
        ClientError,
        JobFailed,
        JobStopped,
        NetworkError,
        Rejected,
        UsageError,
    )
    from settee.client.endpoint import Endpoint, Job
    from settee.client.follow import Result
    from settee.client.inject import Given
    from settee.client.inject.parameter_places import Parameters
    from settee.client.job_outputs import Output
    from settee.client.prepared import Prepared, Wishes
    from settee.client.saving import Saved
    from settee.client.targets import Answer, Status

__all__ = [
    "Ambiguous",
    "Answer",
    "AsyncEndpoint",
    "AsyncJob",
    "AuthError",
    "ClientError",
    "Endpoint",
    "Environment",
    "Given",
    "Job",
    "JobFailed",
    "JobOptions",
    "JobStopped",
    "NetworkError",
    "Output",
    "Parameters",
    "Prepared",
    "Rejected",
    "Result",
    "Saved",
    "Status",
    "UsageError",
    "Wishes",
]

_HOMES = {
    "arguments": ("Environment", "JobOptions"),
    "asynchronous": ("AsyncEndpoint", "AsyncJob"),
    "endpoint": ("Endpoint", "Job"),
    "follow": ("Result",),
    "inject": ("Given",),
    "inject.parameter_places": ("Parameters",),
    "job_outputs": ("Output",),
    "prepared": ("Prepared", "Wishes"),
    "saving": ("Saved",),
    "targets": ("Answer", "Status"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'client_errors')}"), name)
