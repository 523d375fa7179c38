"""docker/install-custom-nodes.sh: pinned nodes into an image, from a real git repository."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.shell import ROOT, Shell

URL = "https://example.com/owner/some-node"


class Nodes:
    """A ComfyUI folder, and a repository that URL leads to."""

    def __init__(self, folder: Path) -> None:
        self.shell = Shell(folder / "shell", ROOT / "docker/install-custom-nodes.sh")
        self.repository = folder / "repository"
        self.comfyui = folder / "comfyui"
        (self.comfyui / "custom_nodes").mkdir(parents=True)
        (self.comfyui / ".venv/bin").mkdir(parents=True)
        self.shell.stub("pip-stub", '[[ "$*" != *freeze* ]] || echo torch==2.8.0')
        (self.comfyui / ".venv/bin/python").symlink_to(self.shell.bin / "pip-stub")
        self.repository.mkdir()
        (self.repository / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
        (self.repository / "requirements.txt").write_text("einops\n")
        self.git("init", "-q", "-b", "main")
        self.git("config", "uploadpack.allowAnySHA1InWant", "true")
        self.git("add", ".")
        self.git("-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "one")
        self.git("tag", "v1.2")
        self.commit = self.git("rev-parse", "HEAD")

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.repository), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    def install(self, specs: str) -> subprocess.CompletedProcess[str]:
        git = {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.file://{self.repository}.insteadOf",
            "GIT_CONFIG_VALUE_0": URL,
            "GIT_TERMINAL_PROMPT": "0",
        }
        return self.shell.run(str(self.comfyui), specs, **git)

    @property
    def installed(self) -> list[str]:
        return sorted(path.name for path in (self.comfyui / "custom_nodes").iterdir())


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


@pytest.mark.parametrize("ref", ["v1.2", "commit"])
def test_a_tag_and_a_commit_are_installed_with_their_requirements(nodes: Nodes, ref: str) -> None:
    done = nodes.install(f"{URL}@{nodes.commit if ref == 'commit' else ref}")
    assert done.returncode == 0, done.stderr
    assert nodes.installed == ["some-node"]
    folder = nodes.comfyui / "custom_nodes/some-node"
    assert (folder / "__init__.py").is_file()
    assert not (folder / ".git").exists()
    freeze, install = nodes.shell.calls("pip-stub")
    assert freeze == "-m pip freeze"
    assert install.startswith("-m pip install -c ")
    assert install.endswith(f"-r {folder}/requirements.txt")


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


def test_a_requirement_that_would_change_comfyuis_packages_ends_the_build(nodes: Nodes) -> None:
    nodes.shell.stub("pip-stub", '[[ "$*" == *freeze* ]]')
    done = nodes.install(f"{URL}@v1.2")
    assert done.returncode == 1
    assert "some-node wants other versions than ComfyUI has" in done.stderr


def test_several_on_several_lines_and_never_two_of_one_name(nodes: Nodes) -> None:
    done = nodes.install(f"{URL}@v1.2\n  {URL}@v1.2")
    assert done.returncode == 1
    assert "some-node is there already" in done.stderr
