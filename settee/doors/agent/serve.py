"""``python -m settee agent --config config.yaml``: everything the agent is made of, put together, run, and ended."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from settee import __version__
from settee.base import logs
from settee.base.errors import ConfigError, SetteeError
from settee.doors.agent import commands
from settee.doors.agent import config as configs
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.engine_settings import make_folders, spelled, to_settings

log = logging.getLogger(__name__)

#: How long callbacks that were never tried may take at the end, seconds.
_CALLBACKS_S = 5.0
#: How long requests that are being answered may take at the end, seconds: more than the ten that a silent S3 holds a
#: job up for, so that a caller who follows it sees its end.
_REQUESTS_S = 15
#: How long one thread may keep all others waiting, seconds: with Python's own 5 ms, the threads of an upload could
#: together hold an answer up for longer than the 50 ms that one may take.
_SWITCH_S = 0.001


def main(argv: Sequence[str] | None = None) -> int:
    """0: ended as told. 2: the configuration, or what it names, is wrong. 1: what it names does not answer."""
    parser = argparse.ArgumentParser(prog="settee agent", description="The GPU agent: render jobs over HTTP.")
    _add_config(parser, default=None)
    parser.add_argument("--check", action="store_true", help="check the configuration and what it names, and stop")
    parser.add_argument("--version", action="version", version=f"settee {__version__}")
    topics = parser.add_subparsers(dest="topic", metavar="[callbacks ...]")
    callbacks = topics.add_parser("callbacks", help="completions and failures that are not delivered")
    # What stands before the subcommand must not give way to a default behind it.
    commands.add_commands(callbacks, lambda command: _add_config(command, default=argparse.SUPPRESS))
    args = parser.parse_args(argv)
    try:
        config = configs.load(args.config)
        if args.topic == "callbacks":
            return commands.run_callbacks(args, config)
        commands.placeholders(config)
        if args.check:
            return _checked(config)
        code = run(config)
    except ConfigError as error:
        for line in error.lines():
            print(f"settee agent: {spelled(line)}", file=sys.stderr)
        return 2
    return code


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=default,
        help=f"YAML (default: ${configs.VARIABLE}); see deploy/config.example.yaml",
    )


def _checked(config: AgentConfig) -> int:
    problems, notes = commands.look(config, to_settings(config))
    for problem in problems:
        print(f"settee agent: {spelled(problem)}", file=sys.stderr)
    print("the configuration can be read, but not be used as it is" if problems else "the configuration is right")
    print("\n".join((commands.summary(config), *(f"  {spelled(note)}" for note in notes))))
    return 1 if problems else 0


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


def run(config: AgentConfig) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError."""
    import uvicorn

    from settee.doors.agent.app import create_app
    from settee.doors.agent.intake import Intake, report_interrupted
    from settee.doors.agent.previous_state import PreviousState, move_cache
    from settee.engine.engine import Engine
    from settee.service.callbacks import Outbox
    from settee.service.http_server import Auth, Patient, Server
    from settee.service.metrics import Metrics
    from settee.service.store import Store, StoreError
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
    engine, metrics = Engine(settings), Metrics()
    try:
        engine.start()
        intake = Intake(config, settings, engine, store, outbox, metrics)
        intake.start(interrupted)
        app = create_app(
            intake,
            metrics,
            Auth(config.auth.tokens),
            max_body_bytes=config.server.max_body_bytes,
            max_nodes=settings.max_nodes,
        )

        def end() -> None:
            intake.close(2 * settings.comfy_interrupt_s + 10)

        server = Server(
            uvicorn.Config(
                app,
                http=Patient,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_REQUESTS_S,
                server_header=False,
            ),
            on_signal=end,
        )
        for line in commands.summary(config).splitlines():
            log.info("%s", line.strip())
        server.serve_until_told([listening])
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
