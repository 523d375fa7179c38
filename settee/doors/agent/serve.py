"""``python -m settee agent --config config.yaml``: everything the agent is made of, put together, run, and ended.

``--check`` looks at what the configuration names, in seconds, and changes nothing. ``callbacks`` lists the completions
and failures that are not delivered, sends them again, or drops them: while the agent runs, which notices within
seconds, or while it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from settee.backends.comfy.comfy_client import Client
from settee.base import logs
from settee.base.errors import ConfigError, SetteeError
from settee.base.settings import Settings
from settee.base.threads import StillRunning, call
from settee.doors.agent import config as configs
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.engine_settings import make_folders, spelled, to_settings
from settee.s3.client import client_for
from settee.s3.error_table import S3Error, explained
from settee.s3.target import workers_target
from settee.service.callback_urls import addressed
from settee.service.store import Callback, Store, StoreError

log = logging.getLogger(__name__)

#: How long callbacks that were never tried may take at the end, seconds.
_CALLBACKS_S = 5.0
#: How long requests that are being answered may take at the end, seconds: more than the ten that a silent S3 holds a
#: job up for, so that a caller who follows it sees its end.
_REQUESTS_S = 15
#: How long one thread may keep all others waiting, seconds: with Python's own 5 ms, the threads of an upload could
#: together hold an answer up for longer than the 50 ms that one may take.
_SWITCH_S = 0.001
#: How long S3 and ComfyUI may take to answer a check, seconds.
_ANSWER_S = 5.0
#: The example's secrets.
_PLACEHOLDER = "CHANGE-ME"


def main(argv: Sequence[str] | None = None) -> int:
    """0: ended as told. 2: the configuration, or what it names, is wrong. 1: what it names does not answer."""
    args = _parser().parse_args(argv)
    try:
        config = configs.load(args.config)
        if args.topic == "callbacks":
            return _callbacks(args, config)
        # The example can be read as it stands, but not be used.
        keys = {"minio.access_key": config.minio.access_key, "minio.secret_key": config.minio.secret_key}
        if left := [name for name, key in keys.items() if key.get_secret_value() == _PLACEHOLDER]:
            raise ConfigError(f"{' and '.join(left)} still contain {_PLACEHOLDER}: put the keys of the S3 server there")
        return _checked(config) if args.check else run(config)
    except ConfigError as error:
        for line in error.lines():
            print(f"settee agent: {spelled(line)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="settee agent", description="The GPU agent: render jobs over HTTP.")
    parser.add_argument("--check", action="store_true", help="check the configuration and what it names, and stop")
    topics = parser.add_subparsers(dest="topic", metavar="[callbacks ...]")
    callbacks = topics.add_parser("callbacks", help="completions and failures that are not delivered")
    commands = callbacks.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="show those that wait, and those that were refused for good")
    listing.add_argument("--refused", action="store_true", help="those that were refused alone")
    retry = commands.add_parser("retry", help="send callbacks again at once, with the same key and body")
    drop = commands.add_parser("drop", help="do not send callbacks any more, and forget them")
    for command in (retry, drop):
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument("ids", nargs="*", type=int, default=[], metavar="ID", help="numbers that the list shows")
        which.add_argument("--refused", action="store_true", help="all those that were refused")
    retry.add_argument("--url", help="send them to this address from now on: the receiver has moved")
    for each in (parser, listing, retry, drop):
        each.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            # What stands before the subcommand must not give way to a default behind it.
            default=None if each is parser else argparse.SUPPRESS,
            help=f"YAML (default: ${configs.VARIABLE}); see deploy/config.example.yaml",
        )
    return parser


# --- the agent ----------------------------------------------------------------------------------------------------


def run(config: AgentConfig) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError."""
    import uvicorn

    from settee.doors.agent.app import create_app
    from settee.doors.agent.intake import Intake, report_interrupted
    from settee.doors.agent.previous_state import PreviousState, move_cache
    from settee.engine.engine import Engine
    from settee.service.callbacks import Outbox
    from settee.service.http_server import Auth, Patient, Server
    from settee.service.webhooks import WebhookSender

    sys.setswitchinterval(_SWITCH_S)
    settings = to_settings(config)
    logs.setup(settings, spelled=spelled)
    listening = _listening(config)
    make_folders(config)
    callbacks = config.callbacks
    store, previous = Store(config.state_folder), PreviousState(config.state_folder)
    store.open(adopt=previous.adopt)
    previous.remove()
    outbox = Outbox(
        store,
        sender=WebhookSender(verify_tls=callbacks.verify_tls, secrets=callbacks.signing_keys()),
        timeout_s=callbacks.timeout_seconds,
        max_retries=callbacks.max_retries,
        retry_backoff_s=callbacks.retry_backoff_seconds,
    )
    try:
        interrupted = report_interrupted(store)
        outbox.start()
    except StoreError as error:
        raise ConfigError(f"state_dir: {error.message}") from error
    # From here on the state folder, and with it the rest, is this agent's alone.
    for folder in (config.paths.base_models, config.paths.loras):
        move_cache(folder)
    engine = Engine(settings)
    try:
        engine.start()
        intake = Intake(config, settings, engine, store, outbox)
        intake.start(interrupted)
        limits = {"max_body_bytes": config.server.max_body_bytes, "max_nodes": settings.max_nodes}
        served = uvicorn.Config(
            create_app(intake, Auth(config.auth.secrets), **limits),
            http=Patient,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_REQUESTS_S,
            server_header=False,
        )

        def end() -> None:
            intake.slot.close(2 * settings.comfy_interrupt_s + 10)

        for line in _summary(config):
            log.info("%s", line)
        Server(served, on_signal=end).serve_until_told([listening])
        log.info("the agent ends")
        end()
    finally:
        listening.close()
        try:
            engine.close()
        except SetteeError as error:
            log.error("ComfyUI could not be ended: %s", error.message)
        outbox.close(_CALLBACKS_S)
        store.close()
    return 0


def _listening(config: AgentConfig) -> socket.socket:
    """The socket, before anything else begins. Raises ConfigError."""
    host, port = config.host.strip("[]"), config.server.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port} ({error.strerror}): is another agent running? see server.host and "
            "server.port"
        ) from error


def _summary(config: AgentConfig) -> list[str]:
    """Describe what the agent will do, for an operator to compare with what was meant."""
    count = len(config.auth.secrets)
    who = f"{count} token{'s' * (count != 1)}" if count else "no token: this host's own users only"
    comfyui = f"started in {config.comfyui.dir}" if config.comfyui.dir else f"at {config.comfyui.url}"
    return [
        f"listens on {config.host} port {config.server.port}; {who}",
        f"ComfyUI {comfyui}; checkpoints in {config.paths.base_models}, LoRAs in {config.paths.loras}",
        f"S3 at {config.minio.url}; state in {config.state_folder}",
    ]


# --- --check ------------------------------------------------------------------------------------------------------


def _checked(config: AgentConfig) -> int:
    """Print what the first job would fail for, and what the agent will do."""
    found = [(is_right, spelled(text)) for is_right, text in _looked_at(config)]
    problems = [text for is_right, text in found if not is_right]
    for problem in problems:
        print(f"settee agent: {problem}", file=sys.stderr)
    print("the configuration can be read, but not be used as it is" if problems else "the configuration is right")
    for line in (*_summary(config), *(text for is_right, text in found if is_right)):
        print(f"  {line}")
    return 1 if problems else 0


def _looked_at(config: AgentConfig) -> Iterator[tuple[bool, str]]:
    """Yield what was found, and whether a job could run with it."""
    settings, comfyui = to_settings(config), config.comfyui
    for name in ("base_models", "loras"):
        folder = getattr(config.paths, name)
        if not folder.is_dir():
            yield False, f"paths.{name}: the folder {folder} does not exist: name ComfyUI's own, or make it"
        elif not os.access(folder, os.W_OK | os.X_OK):
            problem = f"this user has no permission to write to {folder}, and models are placed there"
            yield False, f"paths.{name}: {problem}"
    s3_problem = _s3_problem(settings)
    yield s3_problem is None, s3_problem or "S3 answers, and takes the keys"
    if comfyui.dir is None:
        yield True, _comfyui_note(comfyui.url)
    elif settings.comfy_command is None and not (comfyui.dir / "main.py").is_file():
        yield False, f"comfyui.dir: no ComfyUI (main.py) in {comfyui.dir}"
    yield True, "not asked: buckets (each dispatch names its own), and receivers of callbacks"


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


# --- callbacks ----------------------------------------------------------------------------------------------------


def _callbacks(args: argparse.Namespace, config: AgentConfig) -> int:
    """Carry out a command; return the exit code. Raises ConfigError."""
    store = Store(config.state_folder)
    if not store.path.exists():
        raise ConfigError(f"no callbacks in {config.state_folder}: has the agent run with this state_dir?")
    store.open(exclusive=False)
    with contextlib.closing(store):
        refused = store.callbacks(is_refused=True)
        found = {each.id: each for each in (*([] if args.refused else store.callbacks()), *refused)}
        if args.command == "list":
            print("\n".join(map(_line, found.values())) or "there are none")
            return 0
        ids = list(found) if args.refused else args.ids
        if unknown := [str(each) for each in ids if each not in found]:
            raise ConfigError(f"no callback {', '.join(unknown)}: settee agent callbacks list shows all")
        if args.command == "drop":
            store.remove(ids)
        else:
            try:
                url = None if args.url is None else addressed(args.url)
            except ValueError as error:
                raise ConfigError(f"--url: {error}") from error
            for each in ids:
                store.retry(each, url)
    print(f"{len(ids)} callback{'s' * (len(ids) != 1)} {'dropped' if args.command == 'drop' else 'to be sent'}")
    return 0


def _line(callback: Callback) -> str:
    """Addresses may hold credentials: the host is shown alone."""
    state = "refused" if callback.refused_at else "pending"
    host = urlsplit(callback.url).netloc.rpartition("@")[2]
    why = f"; {callback.last_error}" if callback.last_error else ""
    tries = f"{callback.tries} {'try' if callback.tries == 1 else 'tries'}"
    return f"{callback.id}  {state}  {callback.key!r} to {host} since {callback.created_at} UTC, {tries}{why}"
