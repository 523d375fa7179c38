"""The SDK as we import it, and whether it is still the one our loop was written against."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from settee.doors.runpod import sdk

ROOT = Path(__file__).parents[2]


def fresh(code: str, *arguments: str, **env: str) -> Any:
    """What ``code`` prints (JSON) in a Python of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RUNPOD_")}
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}", *arguments],
        cwd=ROOT,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_our_loop_knows_the_installed_sdk() -> None:
    """When this fails the worker still runs, on the SDK's slower loop.

    Read what changed in the modules of sdk.INSIDE since the last known version, run tests/e2e/test_runpod_*.py
    with the new fingerprint, and add it to sdk.KNOWN_INSIDES.
    """
    assert sdk.is_known(), f"runpod {sdk.load().__version__} is new to us: fingerprint {sdk.inside()}"
    assert sdk.KNOWN_INSIDES[sdk.inside() or ""] == sdk.load().__version__


def test_a_changed_sdk_is_noticed(tmp_path: Path, monkeypatch: Any) -> None:
    modules = tmp_path / "serverless"
    (modules / "modules").mkdir(parents=True)
    real = Path(sdk.load().__file__ or "").parent / "serverless"
    for name in sdk.INSIDE:
        (modules / f"{name}.py").write_bytes((real / f"{name}.py").read_bytes())
    monkeypatch.setattr(sdk.load(), "__file__", str(tmp_path / "__init__.py"))
    assert sdk.is_known()
    with (modules / "modules" / "rp_scale.py").open("a") as module:
        module.write("# a line more\n")
    assert not sdk.is_known()
    (modules / "modules" / "rp_scale.py").unlink()
    assert not sdk.is_known(), "without sources there is nothing to be sure of"


HEAVY = ("boto3", "botocore", "huggingface_hub", "PIL", "fastapi", "uvicorn", "paramiko", "tomlkit", "tqdm", "cpuinfo")
#: One Python for all that can be asked of it, in this order: later imports bring what earlier questions are about.
FACTS = f"""
facts = {{}}
import rp_handler
rp_handler.handler
facts["with the handler"] = [name for name in {HEAVY} if name in sys.modules]
from settee.doors.runpod import sdk
sdk.load()
facts["with the SDK"] = [name for name in {HEAVY} if name in sys.modules]
from runpod.serverless.modules.rp_logger import RunPodLogger
facts["level"] = RunPodLogger.level
from runpod.serverless.utils import rp_debugger
import cpuinfo
facts["processor"] = rp_debugger.PROCESSOR
facts["real cpuinfo"] = hasattr(cpuinfo, "_get_cpu_info_internal") or cpuinfo.__file__ is not None
from runpod.cli.groups.ssh import functions as ssh
from runpod.cli.groups.config import functions as config
from runpod.serverless.utils import rp_upload
facts["progress bar"] = list(rp_upload.tqdm([1, 2], disable=True))
import paramiko, tomlkit, tqdm_loggable.auto
facts["real libraries"] = [ssh.paramiko.RSAKey is paramiko.RSAKey, config.tomlkit.parse is tomlkit.parse]
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    found: dict[str, Any] = fresh(FACTS)
    return found


def test_the_handler_is_ready_without_what_it_does_not_need(facts: dict[str, Any]) -> None:
    assert facts["with the handler"] == facts["with the SDK"] == []


def test_deferred_libraries_are_the_real_ones_when_used(facts: dict[str, Any]) -> None:
    assert facts["progress bar"] == [1, 2]
    assert facts["real libraries"] == [True, True]


def test_the_processor_is_asked_for_by_the_debugger_only(facts: dict[str, Any]) -> None:
    assert (facts["processor"], facts["real cpuinfo"]) == (sdk.NOT_ASKED, True)
    asked = fresh(FACTS, "--rp_debugger", RUNPOD_DEBUG_LEVEL="DEBUG")
    assert asked["processor"] != sdk.NOT_ASKED
    assert asked["level"] == "DEBUG"


def test_the_sdk_logs_no_results_unless_asked_to(facts: dict[str, Any]) -> None:
    assert facts["level"] == "INFO"
    assert fresh(FACTS, RUNPOD_LOG_LEVEL="ERROR")["level"] == "ERROR"
