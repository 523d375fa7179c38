"""Requests that a fuzzer makes of the agent's OpenAPI: none is answered with a 5xx."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support.agent import Agent, HeldStore, comfy

TOKEN = "a-token-of-the-tests"


@pytest.mark.timeout(90)
def test_schemathesis_finds_no_5xx(tmp_path: Path) -> None:
    """Some seconds of it, always the same requests."""
    limits = {"host": "127.0.0.1"}
    with (
        comfy(tmp_path / "comfy") as server,
        HeldStore().running() as store,
        Agent(tmp_path / "agent", store, server, auth={"tokens": [TOKEN]}, server=limits) as agent,
    ):
        command = [str(Path(sysconfig.get_path("scripts"), "schemathesis")), "run", f"{agent.url}/openapi.json"]
        command += ["--header", f"Authorization: Bearer {TOKEN}", "--url", agent.url]
        command += ["--checks", "not_a_server_error", "--phases", "examples,coverage,fuzzing", "--max-examples", "15"]
        command += ["--seed", "1", "--generation-deterministic", "--no-shrink"]
        command += ["--max-time", "10", "--request-timeout", "10", "--no-color"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=80)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        made = re.search(r"(\d+) generated", done.stdout)
        assert made is not None, done.stdout
        assert int(made[1]) > 5, done.stdout
        log = agent.log_path.read_text()
    assert "Traceback" not in log, log[-3000:]
