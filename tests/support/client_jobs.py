"""Jobs sent with the client's RunPod target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from settee.client.follow import follow, result_of
from settee.client.saving import Result
from settee.client.targets import Target
from settee.client.targets.runpod import RunPod
from tests.support.public_api import PublicApi


@contextmanager
def target_of(api: PublicApi, **options: Any) -> Iterator[RunPod]:
    with closing(RunPod(api.url, name="endpoint e1", **{"api_key": api.key, **options})) as target:
        yield target


def sent(job: dict[str, Any]) -> dict[str, Any]:
    return {"input": job}


def run(target: Target, job: dict[str, Any], timeout_s: float = 40) -> Result:
    return result_of(follow(target, target.submit(sent(job)), timeout_s=timeout_s))
