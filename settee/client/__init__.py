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
    from settee.client.arguments import Environment as Environment
    from settee.client.arguments import JobOptions as JobOptions
    from settee.client.asynchronous import AsyncEndpoint as AsyncEndpoint
    from settee.client.asynchronous import AsyncJob as AsyncJob
    from settee.client.client_errors import Ambiguous as Ambiguous
    from settee.client.client_errors import AuthError as AuthError
    from settee.client.client_errors import ClientError as ClientError
    from settee.client.client_errors import JobFailed as JobFailed
    from settee.client.client_errors import JobStopped as JobStopped
    from settee.client.client_errors import NetworkError as NetworkError
    from settee.client.client_errors import Rejected as Rejected
    from settee.client.client_errors import UsageError as UsageError
    from settee.client.endpoint import Endpoint as Endpoint
    from settee.client.endpoint import Job as Job
    from settee.client.inject import Given as Given
    from settee.client.inject.parameter_places import Parameters as Parameters
    from settee.client.job_outputs import Output as Output
    from settee.client.prepared import Prepared as Prepared
    from settee.client.prepared import Wishes as Wishes
    from settee.client.saving import Result as Result
    from settee.client.saving import Saved as Saved
    from settee.client.targets import Answer as Answer
    from settee.client.targets import Status as Status

_ERRORS = "Ambiguous AuthError ClientError JobFailed JobStopped NetworkError Rejected UsageError"
_NAMES = {
    "arguments": "Environment JobOptions",
    "asynchronous": "AsyncEndpoint AsyncJob",
    "client_errors": _ERRORS,
    "endpoint": "Endpoint Job",
    "inject": "Given",
    "inject.parameter_places": "Parameters",
    "job_outputs": "Output",
    "prepared": "Prepared Wishes",
    "saving": "Result Saved",
    "targets": "Answer Status",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
