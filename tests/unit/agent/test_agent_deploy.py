"""What deploy/ ships for the agent: the example configuration and the systemd unit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from settee.comfyui.node_registry import NodeRegistry
from settee.doors.agent import config
from settee.doors.agent import envelope as envelopes
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.contract import example
from settee.doors.agent.graph import validate
from settee.doors.agent.graph.bindings import bound
from settee.doors.agent.graph.loras import chained
from settee.service.config_file import Section, subsections
from tests.unit.agent.templates import context_of, object_info

DEPLOY = Path(__file__).parents[3] / "deploy"
EXAMPLE = DEPLOY / "config.example.yaml"
UNIT = DEPLOY / "settee-agent.service"
#: Options that have no default, or that the example sets to other than theirs.
SET = ("minio.endpoint", "minio.access_key", "minio.secret_key", "state_dir")


def dotted(data: dict[str, Any], section: type[Section] = AgentConfig, prefix: str = "") -> dict[str, Any]:
    """The options of a file by dotted name."""
    below, found = subsections(section), {}
    for name, value in data.items():
        if name in below:
            found |= dotted(value or {}, below[name], f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def options(section: type[Section] = AgentConfig, prefix: str = "") -> set[str]:
    """Every option by its dotted name."""
    below = subsections(section)
    own = {f"{prefix}{name}" for name in section.model_fields.keys() - below}
    return own.union(*(options(part, f"{prefix}{name}.") for name, part in below.items()))


def test_the_example_can_be_loaded() -> None:
    loaded = config.load(EXAMPLE)
    assert loaded.host == "127.0.0.1"
    assert loaded.minio.secret_key.get_secret_value() == "CHANGE-ME"


def test_every_option_is_in_the_example() -> None:
    # What has no default stands behind a bare #, prose behind one and a space.
    text = re.sub(r"^( *)#(?=[a-z_]+:)", r"\1", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(dotted(yaml.safe_load(text))) == options()


def test_the_examples_values_are_the_defaults() -> None:
    given = dotted(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))
    needed = {name: value for name, value in given.items() if name in SET or name.startswith("paths.")}
    sections: dict[str, Any] = {}
    for name, value in needed.items():
        holder, _, key = name.rpartition(".")
        (sections.setdefault(holder, {}) if holder else sections)[key] = value
    assert config.load(EXAMPLE).model_dump_json() == config.parse(sections).model_dump_json()


# --- the first job ---------------------------------------------------------------------------------------


def shipped(name: str) -> Any:
    return json.loads((DEPLOY / name).read_text(encoding="utf-8"))


def test_the_envelope_is_the_documented_one() -> None:
    assert shipped("envelope.example.json") == example("envelope")


@pytest.mark.parametrize("left_out", [(), ("loras", "callbacks")])
def test_the_envelope_goes_with_the_template(left_out: tuple[str, ...]) -> None:
    """Also as docs/agent.md sends it first."""
    data = shipped("envelope.example.json")
    envelope = envelopes.parse({name: value for name, value in data.items() if name not in left_out})
    context = context_of(envelope)
    graph = chained(bound(shipped("workflow.example.json"), envelope, context), context.loras)
    validate.check(graph, envelope, context, NodeRegistry(object_info()))
    assert validate.unplaced(graph, envelope, context) == frozenset()
    assert len([node for node in graph.values() if node["class_type"] == "LoraLoader"]) == len(envelope.loras)


def test_the_docs_first_job_names_what_is_shipped() -> None:
    text = (DEPLOY.parent / "docs" / "agent.md").read_text(encoding="utf-8")
    source = example("envelope")["workflow"]
    template = f"s3://{example('envelope')['baseModel']['bucket']}/{source['minioKey']}"
    assert f"aws s3 cp deploy/workflow.example.json {template}\n" in text
    assert f"s3://{example('envelope')['baseModel']['bucket']}/{example('envelope')['baseModel']['key']} " in text
    assert f"aws s3 mb s3://{example('envelope')['output']['bucket']}\n" in text
    assert f"/jobs/{example('envelope')['jobId']}/events\n" in text


# --- the unit --------------------------------------------------------------------------------------------


def unit_settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_the_agent_with_the_configuration() -> None:
    settings = unit_settings()
    assert settings["ExecStart"] == ["/opt/settee/venv/bin/python -m settee agent"]
    assert f"{config.VARIABLE}=/etc/settee-agent/config.yaml" in settings["Environment"]
    assert settings["KillSignal"] == ["SIGTERM"]
    assert settings["Restart"] == ["on-failure"]


def test_the_unit_may_write_what_the_example_names() -> None:
    settings = unit_settings()
    writable = [Path("/var/lib", *settings["StateDirectory"]), Path("/run", *settings["RuntimeDirectory"])]
    writable += [Path(name.lstrip("-")) for name in settings["ReadWritePaths"]]
    loaded = config.load(EXAMPLE)
    paths = [getattr(loaded.paths, name) for name in type(loaded.paths).model_fields]
    for path in (*paths, loaded.state_folder):
        assert any(path.is_relative_to(folder) for folder in writable), path


def test_the_unit_holds_no_secret() -> None:
    assert not re.search(r"(?i)(token|key|secret|password)s?\s*=", UNIT.read_text(encoding="utf-8"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_the_unit_and_finds_it_hardened(tmp_path: Path) -> None:
    text = UNIT.read_text(encoding="utf-8")
    # What it names is not installed here.
    text = re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", text, flags=re.MULTILINE)
    text = re.sub(r"^(User|Group)=.*$", r"\1=root", text, flags=re.MULTILINE)
    copy = tmp_path / UNIT.name
    copy.write_text(text, encoding="utf-8")
    verified = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60)
    assert (verified.returncode, verified.stderr) == (0, "")
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "nrecognized option" in judged.stderr:
        pytest.skip("systemd-analyze is older than 250")
    assert judged.returncode == 0, judged.stdout
