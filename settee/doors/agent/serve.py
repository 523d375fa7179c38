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
from settee.doors.agent import check
from settee.doors.agent import config as configs
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.engine_settings import make_folders, spelled, to_settings

log = logging.getLogger(__name__)

#: How long callbacks that were never tried may take at the end, seconds.
_LETTERS_S = 5.0
#: How long requests that are being answered may take at the end, seconds: more than the ten that a silent S3 holds a
#: job up for, so that a caller who follows it sees its end.
_REQUESTS_S = 15
#: How long one thread may keep all others waiting, seconds: with Python's own 5 ms, the threads of an upload could
#: together hold an answer up for longer than the 50 ms that one may take.
_SWITCH_S = 0.001


def main(argv: Sequence[str] | None = None) -> int:
    """0: ended as told. 2: the configuration, or what it names, is wrong. 1: what it names does not answer."""
    parser = argparse.ArgumentParser(prog="settee agent", description="The GPU agent: render jobs over HTTP.")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"YAML (default: ${configs.VARIABLE}); see deploy/config.example.yaml",
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and what it names, and stop")
    parser.add_argument("--version", action="version", version=f"settee {__version__}")
    args = parser.parse_args(argv)
    try:
        config = configs.load(args.config)
        check.placeholders(config)
        if args.check:
            return _checked(config)
        code = run(config)
    except ConfigError as error:
        for line in error.lines():
            print(f"settee agent: {spelled(line)}", file=sys.stderr)
        return 2
    return code


def _checked(config: AgentConfig) -> int:
    problems, notes = check.look(config, to_settings(config))
    for problem in problems:
        print(f"settee agent: {spelled(problem)}", file=sys.stderr)
    print("the configuration can be read, but not be used as it is" if problems else "the configuration is right")
    print("\n".join((check.summary(config), *(f"  {spelled(note)}" for note in notes))))
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
    from settee.doors.agent.auth import Auth
    from settee.doors.agent.cache_folders import migrate
    from settee.doors.agent.callbacks.outbox import Outbox
    from settee.doors.agent.callbacks.posting import Poster
    from settee.doors.agent.desk import Desk
    from settee.doors.agent.metrics import Metrics
    from settee.doors.agent.patience import Patient, Server
    from settee.engine import Engine

    sys.setswitchinterval(_SWITCH_S)
    settings = to_settings(config)
    logs.setup(settings, spelled=spelled)
    listening = _listening(config)
    make_folders(config)
    callbacks = config.callbacks
    outbox = Outbox(
        config.state_folder,
        sender=Poster(verify_tls=callbacks.verify_tls),
        timeout_s=callbacks.timeout_seconds,
        max_retries=callbacks.max_retries,
        retry_backoff_s=callbacks.retry_backoff_seconds,
    )
    interrupted = outbox.start()
    # From here on the state folder, and with it the rest, is this agent's alone.
    for folder in (config.paths.base_models, config.paths.loras):
        migrate(folder)
    if interrupted is not None:
        log.warning("job %s was interrupted by a restart; its dispatcher is told", interrupted.job_id)
    engine, metrics = Engine(settings), Metrics()
    try:
        engine.start()
        desk = Desk(config, settings, engine, outbox, metrics)
        desk.start(interrupted)
        app = create_app(
            desk,
            metrics,
            Auth(config.auth.tokens),
            max_body_bytes=config.server.max_body_bytes,
            max_nodes=settings.max_nodes,
        )

        def end() -> None:
            desk.close(2 * settings.comfy_interrupt_s + 10)

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
        for line in check.summary(config).splitlines():
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
        outbox.close(_LETTERS_S)
    return 0
