"""`settee interactive`: ComfyUI with its editor, on every address, and no worker (MODE=interactive).

For building workflows and for looking into a container by SSH. ComfyUI is the one that a worker would start: the same
folders, further model folders and arguments; it is restarted when it ends. Models are placed meanwhile. What is drawn
is not wiped. ComfyUI asks for no password: publish its port only where that is meant.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading

from settee.backends.comfy.process import SupervisedServer
from settee.base import logs
from settee.base.errors import ConfigError, SetteeError
from settee.base.settings import Settings, load
from settee.models.model_store import ModelStore
from settee.staging.workspace import Folders, Workspace

log = logging.getLogger(__name__)

_ANYWHERE = "0.0.0.0"  # noqa: S104 - a container's port is published by the one who runs it
_LOOK_S = 1.0


def serve(settings: Settings, stop: threading.Event) -> None:
    """Run until ``stop`` is set. Raises ConfigError, and ComfyUnavailable when ComfyUI is beyond repair."""
    if settings.comfy_url is not None:
        raise ConfigError("MODE=interactive starts a ComfyUI of its own: unset COMFY_URL")
    root = settings.workspace_dir
    folders = Folders(input=root / "input", output=root / "output", temp=root / "temp")
    workspace = Workspace(folders)
    workspace.claim()  # a worker beside this one would wipe what is drawn here
    server, models = SupervisedServer(settings, folders, listen=_ANYWHERE), ModelStore(settings)
    try:
        for _, folder in folders.named():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            models.load()
            models.start()
        except ConfigError as error:  # ComfyUI can be looked at all the same
            for line in error.lines():
                log.error("%s", line)
        server.start()
        log.info("ComfyUI's editor: port %s", settings.comfy_port)
        while not stop.wait(_LOOK_S):  # the supervisor does not report that it gives up
            if server.unrecoverable:
                server.wait_ready(0)  # raises, with the end of its log
    finally:
        models.close()
        server.close()
        workspace.release()


def main() -> int:
    """Exits with a line that says what to set when a setting is wrong."""
    argparse.ArgumentParser(description="ComfyUI with its editor, on every address, and no worker.").parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        settings = load()
        logs.setup(settings)
        serve(settings, stop)
    except ConfigError as error:
        sys.exit("\n".join(f"settee: {line}" for line in error.lines()))
    except SetteeError as error:
        log.error("%s", error.message)
        for line in error.details.get("log", ()):
            log.error("ComfyUI printed: %s", line)
        return 1
    return 0
