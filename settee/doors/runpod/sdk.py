"""RunPod's SDK, imported quickly, and the versions whose inside we know.

`import runpod` asks py-cpuinfo for the processor's name, which takes about 1.1 s of its 1.4 s, for a debugger
that hardly anyone starts; and it loads its command line's SSH and TOML libraries and a progress bar. A worker is
billed for that time at every cold start, so :func:`load` answers the first with a stand-in and defers the rest.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

#: What `--rp_debugger` prints as the processor when it was not there to make us ask for it.
NOT_ASKED = "not asked for: start the worker with --rp_debugger"
#: Libraries of the SDK's command line and volume cache, loaded when first touched, which in a worker is never.
DEFERRED = ("paramiko", "tomlkit", "tarfile")
#: Modules that our loop builds on or replaces a part of, in the order in which they are hashed.
INSIDE = ("worker", "modules/rp_scale", "modules/rp_job", "modules/rp_http", "modules/worker_state")
#: sha256 over the sources of INSIDE, and the SDK version each belongs to. tests/e2e/test_runpod_sdk.py fails
#: when the installed SDK is not among them: read its changes to these files, run tests/e2e, then add it.
KNOWN_INSIDES = {"335189ff53ea396b511e539ee00ae5b8a02de071048840ae384453187d3bb6c1": "1.12.0"}


def load() -> ModuleType:
    """Import the SDK and return it. Later calls return the same module."""
    if "runpod" in sys.modules:
        return sys.modules["runpod"]
    if not {"RUNPOD_LOG_LEVEL", "RUNPOD_DEBUG_LEVEL"} & os.environ.keys():
        # The SDK reads this at import and takes DEBUG for unset, at which it logs what handlers return.
        os.environ["RUNPOD_LOG_LEVEL"] = "INFO"
    with _stand_ins(ask_processor="--rp_debugger" in sys.argv):
        return importlib.import_module("runpod")


class _Deferred(ModuleType):
    """Stands for a module until one of its attributes is wanted, and imports it then.

    importlib.util.LazyLoader will not do: up to Python 3.11 the import statement itself looks at an attribute
    of a module it finds loaded, which makes LazyLoader load it.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def _stand_ins(*, ask_processor: bool) -> Iterator[None]:
    """Put stand-ins into sys.modules for as long as the SDK is being imported."""
    bar: Any = ModuleType("tqdm_loggable.auto")  # of the SDK's uploader, which takes this one name from it
    bar.tqdm = lambda *args, **named: importlib.import_module(bar.__name__).tqdm(*args, **named)
    processor: Any = ModuleType("cpuinfo")
    processor.get_cpu_info = lambda: {"brand_raw": NOT_ASKED}
    modules = (*map(_Deferred, DEFERRED), bar, *(() if ask_processor else (processor,)))
    stand_ins = {module.__name__: module for module in modules if module.__name__ not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def inside() -> str | None:
    """Return the fingerprint of the installed SDK's job loop, or None when its sources cannot be read."""
    folder = Path(load().__file__ or "").parent / "serverless"
    digest = hashlib.sha256()
    try:
        for name in INSIDE:
            # Line ends are no change of code.
            digest.update((folder / f"{name}.py").read_bytes().replace(b"\r\n", b"\n"))
    except OSError:
        return None
    return digest.hexdigest()


def is_known() -> bool:
    """Return True if the installed SDK is one that our loop was written against and tested with."""
    return inside() in KNOWN_INSIDES
