"""The commands of ``settee agent`` besides running it.

``--check`` looks at what the configuration names, in seconds, and changes nothing. ``callbacks`` lists the completions
and failures that are not delivered, sends them again, or drops them: while the agent runs, which notices within
seconds, or while it does not.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr

from settee.backends.comfy.comfy_client import Client
from settee.base.errors import ConfigError, SetteeError
from settee.base.settings import Settings
from settee.base.threads import StillRunning, call
from settee.doors.agent.config import AgentConfig
from settee.s3.client import client_for
from settee.s3.error_table import S3Error, explained
from settee.s3.target import workers_target
from settee.service.callback_urls import addressed
from settee.service.store import Store, StoredCallback

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


# --- callbacks -------------------------------------------------------------------------------------------------


def add_commands(parser: argparse.ArgumentParser, add_config: Callable[[argparse.ArgumentParser], None]) -> None:
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="show those that wait, and those that were refused for good")
    listing.add_argument("--refused", action="store_true", help="those that were refused alone")
    retry = commands.add_parser("retry", help="send callbacks again at once, with the same key and body")
    _add_which(retry, "those that were refused")
    retry.add_argument("--url", help="send them to this address from now on: the receiver has moved")
    drop = commands.add_parser("drop", help="do not send callbacks any more, and forget them")
    _add_which(drop, "those that were refused")
    for command in (listing, retry, drop):
        add_config(command)


def _add_which(parser: argparse.ArgumentParser, refused: str) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", nargs="*", type=int, default=[], metavar="ID", help="numbers that the list shows")
    which.add_argument("--refused", action="store_true", help=f"all {refused}")


def run_callbacks(args: argparse.Namespace, config: AgentConfig) -> int:
    """Carry out a command; returns the exit code. Raises ConfigError."""
    store = Store(config.state_folder)
    if not store.path.exists():
        raise ConfigError(f"there are no callbacks in {config.state_folder}: has the agent run with this state_dir?")
    store.open(exclusive=False)
    try:
        refused = store.callbacks(is_refused=True)
        found = {each.id: each for each in (*([] if args.refused else store.callbacks()), *refused)}
        if args.command == "list":
            print("\n".join(map(_line, found.values())) or "there are none")
            return 0
        ids = list(found) if args.refused else args.ids
        if unknown := [str(each) for each in ids if each not in found]:
            raise ConfigError(f"there is no callback {', '.join(unknown)}: settee agent callbacks list shows all")
        if args.command == "drop":
            store.remove(ids)
        else:
            url = _checked(args.url)
            for each in ids:
                store.retry(each, url)
        print(f"{len(ids)} callback{'s' * (len(ids) != 1)} {'dropped' if args.command == 'drop' else 'to be sent'}")
        return 0
    finally:
        store.close()


def _checked(url: str | None) -> str | None:
    try:
        return None if url is None else addressed(url)
    except ValueError as error:
        raise ConfigError(f"--url: {error}") from error


def _line(callback: StoredCallback) -> str:
    """Addresses may hold credentials: the host is shown alone."""
    state = "refused" if callback.refused_at else "pending"
    host = urlsplit(callback.url).netloc.rpartition("@")[2]
    why = f"; {callback.last_error}" if callback.last_error else ""
    tries = f"{callback.tries} {'try' if callback.tries == 1 else 'tries'}"
    return f"{callback.id}  {state}  {callback.key!r} to {host} since {callback.created_at} UTC, {tries}{why}"


__all__ = ["add_commands", "look", "placeholders", "run_callbacks", "summary"]
