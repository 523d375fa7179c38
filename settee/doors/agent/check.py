"""``settee agent --check``: what the configuration names is looked at, in seconds; nothing is made or changed."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import SecretStr

from settee.backends.comfy.client import Client
from settee.base.errors import ConfigError, SetteeError
from settee.base.settings import Settings
from settee.base.threads import StillRunning, call
from settee.doors.agent.options import AgentConfig
from settee.s3.client import client_for
from settee.s3.errors import S3Error, explained
from settee.s3.target import workers_target

#: How long S3 and ComfyUI may take to answer, seconds.
_ANSWER_S = 5.0
#: What the example has for secrets.
_PLACEHOLDER = "CHANGE-ME"


def placeholders(config: AgentConfig) -> None:
    """Refuse the example's secrets: it can be read as it stands, but not be used. Raises ConfigError."""
    left = [name for name in ("access_key", "secret_key") if _is_placeholder(getattr(config.minio, name))]
    if left:
        raise ConfigError(
            f"minio.{' and minio.'.join(left)} still say {_PLACEHOLDER}: put the keys of the S3 server there"
        )


def _is_placeholder(value: SecretStr) -> bool:
    return value.get_secret_value() == _PLACEHOLDER


def summary(config: AgentConfig) -> str:
    """Describe what the agent will do, for an operator to compare with what was meant."""
    count = len(config.auth.tokens)
    who = f"{count} token{'s' * (count != 1)}" if count else "no token: this host's own users only"
    comfyui = f"started in {config.comfyui.dir}" if config.comfyui.dir else f"at {config.comfyui.url}"
    return "\n".join(
        (
            f"  listens on {config.host} port {config.server.port}; {who}",
            f"  ComfyUI {comfyui}; checkpoints in {config.paths.base_models}, LoRAs in {config.paths.loras}",
            f"  S3 at {config.minio.url}; state in {config.state_folder}",
        )
    )


def look(config: AgentConfig, settings: Settings) -> tuple[list[str], list[str]]:
    """Return what the first job would fail for, and notes; lines that may name the engine's settings."""
    problems = [
        *_folder_problems("paths.base_models", config.paths.base_models),
        *_folder_problems("paths.loras", config.paths.loras),
    ]
    notes = ["not asked: buckets (each dispatch names its own), and receivers of callbacks"]
    if problem := _s3_problem(settings):
        problems.append(problem)
    else:
        notes.insert(0, "S3 answers, and takes the keys")
    if config.comfyui.dir is None:
        notes.insert(0, _comfyui_note(config.comfyui.url))
    elif settings.comfy_command is None and not (config.comfyui.dir / "main.py").is_file():
        problems.append(f"comfyui.dir: there is no ComfyUI (main.py) in {config.comfyui.dir}")
    return problems, notes


def _folder_problems(option: str, folder: Path) -> list[str]:
    if not folder.is_dir():
        return [f"{option}: the folder {folder} does not exist: name ComfyUI's own, or make it"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"{option}: this user may not write to {folder}, and models are placed there"]
    return []


def _s3_problem(settings: Settings) -> str | None:
    target = workers_target(settings)
    assert target is not None, "the agent's configuration always names its S3 store"
    try:
        with explained(target, reads=True):
            call(lambda: client_for(target).list_buckets(), _ANSWER_S)
    except StillRunning:
        return f"S3 does not answer within {_ANSWER_S:g} s: look at {target.setting('ENDPOINT_URL')}"
    except S3Error as error:
        # Keys that may not list all buckets are keys all the same.
        return None if error.details.get("s3_code") == "AccessDenied" and error.status == 403 else error.message
    return None


def _comfyui_note(url: str) -> str:
    client = Client(url)
    try:
        client.system_stats(timeout_s=_ANSWER_S)
    except SetteeError:
        return "ComfyUI does not answer now; a job waits for it, for a while"
    finally:
        client.close()
    return "ComfyUI answers"
