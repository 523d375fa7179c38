"""start.sh, function by function: sourced, with stub commands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.shell import START, Shell

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB8+2jzQv6sH3mCqkE3JY5RXWg0RFVg2ldZmRrHJ4YxN someone@example"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_sourcing_runs_nothing(shell: Shell) -> None:
    done = shell.source("declare -F _main")
    assert (done.returncode, done.stdout, done.stderr) == (0, "_main\n", "")


# --- secrets ------------------------------------------------------------------------------------------------


def test_a_secret_comes_from_its_file(shell: Shell) -> None:
    (shell.folder / "key").write_text("from the file\n")
    done = shell.source(
        'secret_from_file PUBLIC_KEY; printf %s "$PUBLIC_KEY"', PUBLIC_KEY_FILE=str(shell.folder / "key")
    )
    assert (done.stdout, done.stderr) == ("from the file", "")


def test_a_secret_without_a_file_is_left_as_it_is(shell: Shell) -> None:
    assert shell.source('secret_from_file PUBLIC_KEY; printf %s "$PUBLIC_KEY"', PUBLIC_KEY="x").stdout == "x"
    assert shell.source('secret_from_file PUBLIC_KEY; printf %s "${PUBLIC_KEY-unset}"').stdout == "unset"


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PUBLIC_KEY": "secret-1", "PUBLIC_KEY_FILE": "/dev/null"}, "PUBLIC_KEY and PUBLIC_KEY_FILE are both set"),
        ({"PUBLIC_KEY_FILE": "/nowhere/secret-1"}, "PUBLIC_KEY_FILE names a file that cannot be read"),
        ({"PUBLIC_KEY_FILE": "/"}, "PUBLIC_KEY_FILE names a file that cannot be read"),
    ],
)
def test_a_secret_that_cannot_be_read_is_one_clear_error(shell: Shell, env: dict[str, str], says: str) -> None:
    done = shell.source("secret_from_file PUBLIC_KEY; echo went on", **env)
    assert done.returncode == 1
    assert says in done.stderr
    assert "went on" not in done.stdout
    assert "secret-1" not in done.stderr


# --- modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "runs"),
    [
        ({}, "-u rp_handler.py --test_input {}"),
        ({"MODE": "serverless"}, "-u rp_handler.py --test_input {}"),
        ({"MODE": "serve-api"}, "-u rp_handler.py --test_input {}"),
        ({"MODE": "interactive"}, "-u -m settee interactive --test_input {}"),
    ],
)
def test_each_mode_becomes_its_program(shell: Shell, env: dict[str, str], runs: str) -> None:
    shell.stub("stub-python", 'echo "pid $$ api ${SERVE_API_LOCALLY-} in $PWD"')
    done = shell.source(
        'echo "pid $$"; _main --test_input "{}"',
        SETTEE_PYTHON="stub-python",
        COMFY_DIR="/nowhere",
        WORKSPACE_DIR=str(shell.folder / "ram"),
        **env,
    )
    assert done.returncode == 0, done.stderr
    assert shell.calls("stub-python") == [runs]
    before, after = done.stdout.splitlines()
    api = "true" if env.get("MODE") == "serve-api" else ""
    assert after == f"{before} api {api} in {START.parent}", "the same process: exec, so that signals arrive"


def test_an_unknown_mode_is_one_clear_error(shell: Shell) -> None:
    done = shell.run(MODE="Serverless", WORKSPACE_DIR=str(shell.folder / "ram"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "start.sh: MODE=Serverless is none of serverless, interactive, serve-api\n"
    assert not (shell.folder / "ram").exists()


def test_a_command_runs_instead_of_a_mode(shell: Shell) -> None:
    done = shell.run("printf", "%s|", "a b", "$HOME", WORKSPACE_DIR=str(shell.folder / "ram"), COMFY_DIR="/nowhere")
    assert done.stdout == "a b|$HOME|"
    assert (shell.folder / "ram" / "temp").is_dir()


def test_a_python_that_is_not_there_is_named(shell: Shell) -> None:
    done = shell.run(SETTEE_PYTHON="/nowhere/python")
    assert done.returncode == 1
    assert "there is no /nowhere/python: set SETTEE_PYTHON" in done.stderr


def test_the_environment_is_never_printed(shell: Shell) -> None:
    for name in ("sshd", "ssh-keygen", "stub-python"):
        shell.stub(name)
    secrets = {name: f"hush-{name}" for name in ("HF_TOKEN", "BUCKET_SECRET_ACCESS_KEY", "ENCRYPTION_KEY")}
    done = shell.run(
        SETTEE_PYTHON="stub-python",
        WORKSPACE_DIR=str(shell.folder / "ram"),
        COMFY_DIR="/nowhere",
        PUBLIC_KEY="hush-key",
        SSH_HOST_KEYS=str(shell.folder),
        **secrets,
    )
    assert done.returncode == 0, done.stderr
    assert "hush" not in done.stdout + done.stderr + "".join(shell.calls("sshd"))


# --- the RAM disk -------------------------------------------------------------------------------------------


@pytest.fixture
def comfy(shell: Shell) -> Path:
    folder = shell.folder / "comfyui"
    (folder / "input").mkdir(parents=True)
    (folder / "input" / "example.png").write_bytes(b"precious")
    (folder / "output").mkdir()
    return folder


def make_ram_disk(shell: Shell, comfy: Path, workspace: Path) -> str:
    done = shell.source("setup_folders; make_ram_disk", COMFY_DIR=str(comfy), WORKSPACE_DIR=str(workspace))
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_comfyuis_folders_become_links_and_no_file_is_lost(shell: Shell, comfy: Path) -> None:
    workspace = shell.folder / "ram"
    said = make_ram_disk(shell, comfy, workspace)
    for name in ("input", "output", "temp"):
        assert os.readlink(comfy / name) == str(workspace / name)
        assert (workspace / name).stat().st_mode & 0o777 == 0o700
        assert list((workspace / name).iterdir()) == []
    assert (comfy / "input.before-settee" / "example.png").read_bytes() == b"precious"
    assert not (comfy / "output.before-settee").exists(), "an empty folder holds nothing to keep"
    assert f"moved {comfy}/input to {comfy}/input.before-settee" in said


def test_a_second_start_changes_nothing(shell: Shell, comfy: Path) -> None:
    workspace = shell.folder / "ram"
    make_ram_disk(shell, comfy, workspace)
    (workspace / "output" / "made.png").write_bytes(b"x")
    before = sorted(path.name for path in comfy.iterdir())
    assert "moved" not in make_ram_disk(shell, comfy, workspace)
    assert sorted(path.name for path in comfy.iterdir()) == before
    assert (workspace / "output" / "made.png").exists()


def test_links_and_files_of_others_are_moved_aside_too(shell: Shell, comfy: Path) -> None:
    volume = shell.folder / "volume"
    volume.mkdir()
    (volume / "kept.png").write_bytes(b"x")
    (comfy / "output").rmdir()
    (comfy / "output").symlink_to(volume)
    (comfy / "temp").symlink_to("/nowhere/at/all")
    (comfy / "input.before-settee").write_text("taken")
    make_ram_disk(shell, comfy, shell.folder / "ram")
    assert (volume / "kept.png").exists()
    assert os.readlink(comfy / "output.before-settee") == str(volume)
    assert os.readlink(comfy / "temp.before-settee") == "/nowhere/at/all"
    assert (comfy / "input.before-settee").read_text() == "taken"
    assert (comfy / "input.before-settee-2" / "example.png").read_bytes() == b"precious"


def test_a_workspace_in_comfyuis_own_folders_is_left_alone(shell: Shell, comfy: Path) -> None:
    make_ram_disk(shell, comfy, comfy)
    assert (comfy / "input" / "example.png").read_bytes() == b"precious"
    assert not (comfy / "input").is_symlink()


def test_a_folder_that_cannot_be_moved_costs_a_warning(shell: Shell, comfy: Path) -> None:
    shell.stub("mv", "exit 1")
    said = make_ram_disk(shell, comfy, shell.folder / "ram")
    assert "input stays where it is" in said
    assert (comfy / "input" / "example.png").read_bytes() == b"precious"
    assert (comfy / "output").is_symlink()


def test_a_small_ram_disk_and_a_real_disk_are_said(shell: Shell) -> None:
    shell.stub("stat", "echo ext2/ext3")
    shell.stub("df", 'echo "Filesystem 1M-blocks Used Available"; echo "shm 64 0 64 0% /dev/shm"')
    said = make_ram_disk(shell, Path("/nowhere"), shell.folder / "ram")
    assert "64 MiB free" in said
    assert "--shm-size" in said
    assert "on a disk" in said


@pytest.mark.parametrize("workspace", ["", "/", "relative"])
def test_a_workspace_of_nothing_is_never_used(shell: Shell, comfy: Path, workspace: str) -> None:
    """Unset is the RAM disk's own folder; the root folder and relative ones are refused."""
    done = shell.source('setup_folders; printf %s "$WORKSPACE_DIR"', COMFY_DIR=str(comfy), WORKSPACE_DIR=workspace)
    if workspace:
        assert done.returncode == 1
        assert "WORKSPACE_DIR must be an absolute path" in done.stderr
    else:
        assert done.stdout.endswith("/settee")


# --- SSH ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ssh(shell: Shell) -> Shell:
    shell.stub("sshd")
    shell.stub("mkdir", '[[ "${!#}" == /run/sshd ]] || exec /bin/mkdir "$@"')
    shell.stub("ssh-keygen", '[[ "$1" != -q ]] || echo "host key" >"${!#}"')
    return shell


def start_ssh(shell: Shell, **env: str) -> str:
    done = shell.source("start_ssh", SSH_HOST_KEYS=str(shell.folder), **env)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_without_a_key_there_is_no_ssh(ssh: Shell) -> None:
    assert start_ssh(ssh) == ""
    assert ssh.calls("sshd") == ssh.calls("ssh-keygen") == []
    assert not (ssh.home / ".ssh").exists()


def test_ssh_takes_that_key_and_no_password(ssh: Shell) -> None:
    assert "SSH listens" in start_ssh(ssh, PUBLIC_KEY=KEY)
    keys = ssh.home / ".ssh" / "authorized_keys"
    assert keys.read_text() == KEY + "\n"
    assert (keys.stat().st_mode & 0o777, keys.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    (call,) = ssh.calls("sshd")
    for option in ("PasswordAuthentication=no", "KbdInteractiveAuthentication=no", "PermitRootLogin=prohibit-password"):
        assert option in call


def test_host_keys_are_made_once_and_keys_are_added_once(ssh: Shell) -> None:
    other = KEY.replace("someone", "other")
    start_ssh(ssh, PUBLIC_KEY=KEY)
    made = len(ssh.calls("ssh-keygen"))
    start_ssh(ssh, PUBLIC_KEY=f"{KEY}\r\n\n{other}\n")
    assert len(ssh.calls("ssh-keygen")) == made + 1, "only the check of PUBLIC_KEY again"
    assert (ssh.home / ".ssh" / "authorized_keys").read_text() == f"{KEY}\n{other}\n"
    assert sorted(path.name for path in ssh.folder.glob("ssh_host_*")) == ["ssh_host_ed25519_key", "ssh_host_rsa_key"]


def test_a_missing_sshd_costs_a_warning(shell: Shell) -> None:
    done = shell.source("command() { return 1; }; start_ssh", PUBLIC_KEY=KEY)
    assert done.returncode == 0
    assert "there is no sshd in this image" in done.stderr


def test_a_bad_key_and_an_sshd_that_fails_cost_a_warning(ssh: Shell) -> None:
    ssh.stub("sshd", "exit 255")
    assert "sshd did not start" in start_ssh(ssh, PUBLIC_KEY=KEY)
    ssh.stub("ssh-keygen", "exit 255")
    said = start_ssh(ssh, PUBLIC_KEY="hush")
    assert "PUBLIC_KEY is not an SSH public key" in said
    assert "hush" not in said


def test_host_keys_that_cannot_be_made_cost_a_warning(ssh: Shell) -> None:
    ssh.stub("ssh-keygen", '[[ "$1" != -q ]]')
    assert "no SSH" in start_ssh(ssh, PUBLIC_KEY=KEY)
    assert ssh.calls("sshd") == []


def test_a_key_file_whose_last_line_has_no_end_keeps_its_key(shell: Shell) -> None:
    file = shell.folder / "keys" / "authorized_keys"
    file.parent.mkdir()
    file.write_text("ssh-ed25519 AAAA first")
    done = shell.source(f"authorize_keys {file.parent}", PUBLIC_KEY="ssh-ed25519 BBBB second")
    assert done.returncode == 0, done.stderr
    assert file.read_text() == "ssh-ed25519 AAAA first\nssh-ed25519 BBBB second\n"
