"""docker/install-custom-nodes.sh: pinned nodes into an image, from a real git repository."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.package_index import PackageIndex, Release
from tests.support.shell import ROOT, Shell

URL = "https://example.com/owner/some-node"


class Nodes:
    """A ComfyUI folder with a Python of its own, a package index, and a repository that URL leads to."""

    def __init__(self, folder: Path, index: PackageIndex) -> None:
        self.shell = Shell(folder / "shell", ROOT / "docker/install-custom-nodes.sh")
        self.index = index
        self.repository = folder / "repository"
        self.comfyui = folder / "comfyui"
        (self.comfyui / "custom_nodes").mkdir(parents=True)
        self.lock = folder / "comfyui.lock"
        self.lock.write_text("# As of 2025-07-01. Made by a test.\ntorch==2.8.0\n")
        (self.shell.bin / "uv").symlink_to(Path(sys.executable).with_name("uv"))
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.comfyui / ".venv"], check=True, timeout=60)
        index.add(Release("torch", "2.8.0", uploaded="2025-08-01T00:00:00Z"))
        index.add(Release("torch", "2.7.0"))
        for version, year in (("0.7", 2024), ("0.8", 2025), ("0.9", 2026), ("1.0", 2027)):
            index.add(Release("einops", version, requires=("torch",), uploaded=f"{year}-06-01T00:00:00Z"))
        done = self.uv("install", "--default-index", index.simple, "torch==2.8.0")
        assert done.returncode == 0, done.stderr
        self.repository.mkdir()
        (self.repository / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
        self.git("init", "-q", "-b", "main")
        self.git("config", "uploadpack.allowAnySHA1InWant", "true")
        self.commit_requirements("einops\n")
        self.git("tag", "v1.2")

    def uv(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [self.shell.bin / "uv", "pip", arguments[0], "--python", self.comfyui / ".venv/bin/python"]
        return subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, timeout=60)

    def commit_requirements(self, text: str, day: str = "2025-01-02") -> None:
        (self.repository / "requirements.txt").write_text(text)
        self.git("add", ".")
        author = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        self.git(*author, "commit", "-qm", "one", "--date", f"{day}T12:00:00Z", GIT_COMMITTER_DATE=f"{day}T12:00:00Z")
        self.commit = self.git("rev-parse", "HEAD")

    def git(self, *arguments: str, **env: str) -> str:
        command = ["git", "-C", str(self.repository), *arguments]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=30, env={**os.environ, **env}
        )
        return done.stdout.strip()

    def install(self, specs: str) -> subprocess.CompletedProcess[str]:
        git = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{self.repository}.insteadOf",
            "GIT_CONFIG_VALUE_0": URL,
            "GIT_TERMINAL_PROMPT": "0",
        }
        return self.shell.run(str(self.comfyui), str(self.lock), specs, UV_DEFAULT_INDEX=self.index.simple, **git)

    @property
    def installed(self) -> list[str]:
        return sorted(path.name for path in (self.comfyui / "custom_nodes").iterdir())

    @property
    def packages(self) -> list[str]:
        return self.uv("freeze").stdout.split()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with contextlib.closing(PackageIndex()) as index:
        yield Nodes(tmp_path, index)


@pytest.mark.parametrize("ref", ["v1.2", "commit"])
def test_a_tag_and_a_commit_are_installed_with_their_requirements(nodes: Nodes, ref: str) -> None:
    done = nodes.install(f"{URL}@{nodes.commit if ref == 'commit' else ref}")
    assert done.returncode == 0, done.stderr
    assert nodes.installed == ["some-node"]
    folder = nodes.comfyui / "custom_nodes/some-node"
    assert (folder / "__init__.py").is_file()
    assert not (folder / ".git").exists()
    assert nodes.packages == ["einops==0.8", "torch==2.8.0"], "as on the lock's day, and what was there stays"


def test_a_node_that_is_newer_than_the_lock_has_the_packages_of_its_own_day(nodes: Nodes) -> None:
    nodes.commit_requirements("einops>=0.8\n", "2026-07-01")
    done = nodes.install(f"{URL}@{nodes.commit}")
    assert done.returncode == 0, done.stderr
    assert nodes.packages == ["einops==0.9", "torch==2.8.0"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (URL, "is not pinned"),
        (f"{URL}@", "is not pinned"),
        (f"{URL}@main", "has no tag or commit main"),
        (f"{URL}@HEAD", "has no tag or commit HEAD"),
        (f"{URL}@v9", "has no tag or commit v9"),
        (f"{URL}@abcdef1", "give the whole commit id"),
        ("http://example.com/owner/some-node@v1.2", "is not pinned"),
        ("https://example.com/a;b@v1.2", "is not pinned"),
        ("--upload-pack=x@v1.2", "is not pinned"),
    ],
)
def test_what_is_not_pinned_ends_the_build(nodes: Nodes, spec: str, says: str) -> None:
    done = nodes.install(spec)
    assert done.returncode == 1
    assert says in done.stderr


@pytest.mark.parametrize("requirement", ["torch==2.7.0", "einops>=0.9"])
def test_a_requirement_that_would_change_comfyuis_packages_or_is_of_a_later_day_ends_the_build(
    nodes: Nodes, requirement: str
) -> None:
    nodes.commit_requirements(f"{requirement}\n")
    done = nodes.install(f"{URL}@{nodes.commit}")
    assert done.returncode == 1
    assert "some-node wants other versions than ComfyUI has, or releases after 2025-07-01" in done.stderr
    assert nodes.packages == ["torch==2.8.0"]


def test_several_on_several_lines_and_never_two_of_one_name(nodes: Nodes) -> None:
    done = nodes.install(f"{URL}@v1.2\n  {URL}@v1.2")
    assert done.returncode == 1
    assert "some-node is there already" in done.stderr


def test_the_recipe_for_a_volume_adds_to_the_images_packages(nodes: Nodes, tmp_path: Path) -> None:
    """docs/deploy.md's, as it stands there."""
    [recipe] = re.findall(r"```\n(cd /workspace && /comfyui.*?)```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL)
    volume = tmp_path / "volume"
    pack = volume / "custom_nodes" / "PACK"
    pack.mkdir(parents=True)
    (pack / "requirements.txt").write_text("einops==0.7\ntorch\n")
    script = recipe.replace("/workspace", str(volume)).replace("/comfyui", str(nodes.comfyui))
    env = {**os.environ, "PIP_INDEX_URL": nodes.index.simple, "PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": ""}
    done = subprocess.run(["bash", "-ec", script], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    [packages] = (volume / "comfy-venv" / "lib").glob("python3.*/site-packages")
    assert "einops" in {path.name.partition("-")[0] for path in packages.iterdir()}
    assert "torch" not in {path.name.partition("-")[0] for path in packages.iterdir()}
    code = "from importlib.metadata import version; print(version('einops'), version('torch'))"
    shown = subprocess.check_output([volume / "comfy-venv/bin/python", "-c", code], text=True, timeout=30)
    assert shown.split() == ["0.7", "2.8.0"]
