"""Idempotency keys: which job each made, also after a restart."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from settee.base.files import write_whole

log = logging.getLogger(__name__)

_VERSION = 1
#: Keys that are remembered: the newest.
KEPT = 1000


@dataclass(frozen=True)
class Known:
    """What a key was used for."""

    #: Hex, of the request's body.
    digest: str
    job_id: str


class Keys:
    """``keys.json`` in the state folder. Used by one thread at a time.

    A key is kept as its hash: callers choose them, and some put a token in. A file that cannot be written costs the
    memory of a restart, and is logged; a damaged one is begun anew.
    """

    def __init__(self, folder: Path, *, kept: int = KEPT) -> None:
        self._path = folder / "keys.json"
        self._kept = kept
        self._known: OrderedDict[str, Known] | None = None

    def get(self, key: str) -> Known | None:
        return self._all().get(_hashed(key))

    def put(self, key: str, known: Known) -> None:
        """Remember it, on the disk as well."""
        found = self._all()
        found[_hashed(key)] = known
        found.move_to_end(_hashed(key))
        while len(found) > self._kept:
            found.popitem(last=False)
        self._save()

    def _save(self) -> None:
        try:
            rows = [[name, each.digest, each.job_id] for name, each in self._all().items()]
            write_whole(self._path, json.dumps({"version": _VERSION, "keys": rows}).encode("ascii"))
        except OSError as error:
            log.warning("an Idempotency-Key is not remembered over a restart (%s)", error.strerror)

    def forget(self, key: str) -> None:
        """Its job never began."""
        self._all().pop(_hashed(key), None)
        self._save()

    def _all(self) -> OrderedDict[str, Known]:
        if self._known is None:
            self._known = self._read()
        return self._known

    def _read(self) -> OrderedDict[str, Known]:
        found: OrderedDict[str, Known] = OrderedDict()
        try:
            data = json.loads(self._path.read_bytes())
            if data["version"] != _VERSION:
                raise ValueError("not of this version")
            for name, digest, job_id in data["keys"]:
                found[str(name)] = Known(str(digest), str(job_id))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            log.error("keys.json in the state folder cannot be read: Idempotency-Keys of before are forgotten")
            found.clear()
        return found


def _hashed(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


__all__ = ["Keys", "Known"]
