"""All models of a worker, and the placing of each.

Placing begins when the worker starts, while ComfyUI starts. A job waits only for the models that its workflow names;
lazy entries, and those that it brings, are placed when it does. Any number of requests for a file place it once.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from settee.base.errors import ConfigError, JobCanceled, SetteeError, StagingError
from settee.base.settings import Settings
from settee.base.threads import Call, Stopped
from settee.comfyui.model_folders import name_of
from settee.models import spec
from settee.models.bars import Bars
from settee.models.entry import ModelEntry
from settee.models.placing import IN_PLACE, Placing, Progressed, Repository, Tools
from settee.models.readahead import ReadAhead

log = logging.getLogger(__name__)

#: How long a download that was given up may take to end.
_END_S = 5.0

#: Called with an entry and how it ended: words, or the error.
Ended = Callable[[ModelEntry, "str | SetteeError"], None]


class LogLines:
    """Logs the beginning of a download, a line every few seconds, and each model's end. Safe from any thread.

    A job's own models are not named: their names may be private.
    """

    def __init__(self) -> None:
        self._bars = Bars(sys.stderr, is_terminal=False, log=lambda line: log.info("model %s", line))

    def progress(self, entry: ModelEntry, done: int, total: int | None, source: str) -> None:
        """``done`` of ``total`` bytes are in place."""
        if not entry.from_job:
            self._bars.update(str(entry.path), done, total, source)

    def end(self, entry: ModelEntry, outcome: str | SetteeError) -> None:
        """An entry ended: words, or the error."""
        self._bars.forget(str(entry.path))
        if outcome == IN_PLACE or isinstance(outcome, JobCanceled):
            return
        if entry.from_job:
            log.info("a model of the job's: %s", outcome.code if isinstance(outcome, SetteeError) else outcome)
        elif isinstance(outcome, SetteeError):
            log.log(logging.ERROR if entry.required else logging.WARNING, "%s", outcome.message)
        else:
            log.info("model %s: %s", entry.path, outcome)


class ModelStore:
    """The models of one worker. Nothing happens before :meth:`start`. By default progress and ends are logged."""

    def __init__(
        self, settings: Settings, *, on_progress: Progressed | None = None, on_end: Ended | None = None
    ) -> None:
        self.settings = settings
        lines = LogLines()
        self._on_progress = on_progress or lines.progress
        self._on_end = on_end or lines.end
        self.entries: tuple[ModelEntry, ...] = ()
        self.tools = Tools(settings)
        self._read_ahead = ReadAhead() if settings.models_read_ahead else None
        self._read_before: set[Path] = set()
        self._changed = threading.Condition()
        #: Those under way. One that has ended is dropped: it holds its job's S3 keys.
        self._placings: dict[str, Placing] = {}
        #: The content of each name when a job last used it: ComfyUI keeps what it loaded under a name.
        self._seen: dict[str, frozenset[object]] = {}
        #: ComfyUI may keep an earlier content of a name.
        self._is_stale = False
        self._calls: set[Call[None]] = set()
        self._closing = False

    # --- life ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read MODELS and MODELS_FILE. Raises ConfigError with every bad entry."""
        self.entries = spec.configured(self.settings)
        for doubt in spec.doubts(self.entries):
            log.warning("%s", doubt)
        if self.entries and not self.has_folder:
            raise ConfigError("MODELS needs MODELS_DIR: the models folder of the ComfyUI at COMFY_URL")

    @property
    def has_folder(self) -> bool:
        """Return True if ComfyUI's models folder is known: that of an external one may be on another machine."""
        return self.settings.comfy_url is None or self.settings.models_dir is not None

    def start(self) -> None:
        """Begin to place the entries that :meth:`load` has read and that are not lazy; return at once."""
        if self.has_folder:
            self._spawn(self.tools.folder.wipe_left)
        eager = [entry for entry in self.entries if not entry.lazy]
        if eager:
            self._spawn(lambda: self._place_all(eager))

    def give_up(self) -> None:
        """Give up all placings, for good (a later start resumes them); waits for nothing."""
        with self._changed:
            self._closing = True
            placings = list(self._placings.values())
        for placing in placings:
            placing.give_up()

    def close(self) -> None:
        """Give up all placings and reading ahead; return when they have ended, or after some seconds."""
        self.give_up()
        if self._read_ahead is not None:
            self._read_ahead.close()
        deadline = time.monotonic() + _END_S
        for call in tuple(self._calls):
            call.ended.wait(max(0.0, deadline - time.monotonic()))

    def place(self, entries: Sequence[ModelEntry]) -> dict[str, str | SetteeError]:
        """Place these now and wait for all: path → how it ended. For the command line."""
        mine = self._place_all(entries)
        with self._changed:
            self._changed.wait_for(lambda: all(placing.outcome is not None for placing in mine))
            return {str(placing.entry.path): placing.outcome for placing in mine if placing.outcome is not None}

    # --- placing ------------------------------------------------------------------------------------------------

    def _place_all(self, entries: Iterable[ModelEntry]) -> list[Placing]:
        """Begin these, one after another."""
        begun: list[Placing] = []
        for entry in entries:
            if self._closing:
                break
            begun.append(self.begin(entry))
        return begun

    def begin(self, entry: ModelEntry, *, urgent: bool = False) -> Placing:
        """Return the placing of this entry that is under way, or a new one. A model in place costs one look, here."""
        key = str(entry.path)
        with self._changed:
            placing = self._placings.get(key)
            is_new = placing is None or not placing.serves(entry)
            if placing is None or is_new:
                kind = Repository if entry.is_repository else Placing
                placing = self._placings[key] = kind(entry, self.tools, self._on_progress)
            if urgent:
                placing.waiting += 1
                placing.lane.urgent = True
        if is_new and not self._settle(placing, placing.at_once):
            try:
                self._spawn(lambda: self._settle(placing, placing.place))
            except RuntimeError:
                what = f"the model {entry.path} could not be placed: the worker may have no more threads"
                self._end(placing, StagingError(what, retryable=True))
        return placing

    def _settle(self, placing: Placing, step: Callable[[], str | None]) -> bool:
        """Return True if this step ended the placing, one way or the other."""
        try:
            outcome: str | SetteeError | None = step()
        except SetteeError as error:
            outcome = error
        except Stopped:
            outcome = JobCanceled("the download was given up")
        except Exception as error:  # a thread's edge: waiting jobs must get the failure
            log.exception("placing a model failed")
            outcome = SetteeError(f"the model {placing.entry.path} could not be placed ({type(error).__name__})")
        if outcome is None:
            return False
        self._end(placing, outcome)
        return True

    def _end(self, placing: Placing, outcome: str | SetteeError) -> None:
        placing.lane.urgent = False
        self._on_end(placing.entry, outcome)
        if not isinstance(outcome, SetteeError) and (placing.waiting or placing.entry.preload):
            for part in placing.parts:
                self.read_ahead(self.tools.folder.path_of(part.entry))
        with self._changed:
            placing.outcome = outcome
            key = str(placing.entry.path)
            if self._placings.get(key) is placing:
                del self._placings[key]
            self._changed.notify_all()

    def read_ahead(self, path: Path) -> None:
        """Read a file into the page cache, once: for later jobs it is where ComfyUI has it."""
        if self._read_ahead is not None and path not in self._read_before:
            self._read_before.add(path)
            self._read_ahead.add(path)

    def _spawn(self, work: Callable[[], object]) -> None:
        """Do this in a thread that need not end before the worker does: a server's answer may never come."""

        def logged() -> None:
            try:
                work()
            except Exception:  # a thread's edge
                log.exception("placing models failed")

        call = Call(logged, name="models")
        self._calls.add(call)
        call.when_ended(lambda: self._calls.discard(call))

    # --- for a job's order -------------------------------------------------------------------------------------

    def wait_end(self, placings: Sequence[Placing], timeout_s: float) -> None:
        """Wait until one of these has ended."""
        with self._changed:
            self._changed.wait_for(lambda: any(placing.outcome is not None for placing in placings), timeout_s)

    def leave(self, placings: Sequence[Placing]) -> None:
        """End a job's wait for these: those without another use are given up."""
        paths = {str(one.entry.path) for placing in placings for one in (placing, *placing.parts)}
        self.tools.budget.let_go(paths)
        with self._changed:
            for placing in placings:
                placing.waiting -= 1
                if placing.waiting or placing.outcome is not None:
                    continue
                placing.lane.urgent = False
                if placing.entry.lazy or placing.entry.from_job:
                    placing.give_up()

    def await_end(self, entries: Iterable[ModelEntry], timeout_s: float) -> bool:
        """Wait until none of these is being placed any more (one that was given up may still finish). True if so."""
        paths = {str(entry.path) for entry in entries}
        with self._changed:
            return self._changed.wait_for(lambda: not paths & self._placings.keys(), timeout_s)

    def wipe(self, placings: Sequence[Placing]) -> None:
        """Overwrite these in place and remove them, also what of them was downloaded so far."""
        with self._changed:
            for placing in placings:
                placing.give_up()
            self._changed.wait_for(lambda: all(item.outcome is not None for item in placings), _END_S)
        for part in (part for placing in placings for part in placing.parts):
            self.tools.folder.records.discard(str(part.entry.path), wipe=True)

    def has_changed(self, placings: Iterable[Placing]) -> bool:
        """Return True if a name has another content than when a job last used it, until :meth:`forgotten`."""
        for part in (part for placing in placings for part in placing.parts):
            key, now = name_of(part.entry.path), self.tools.folder.content_of(part.entry)
            # An earlier job may have used the existing file without bringing it.
            before = self._seen.get(key, part.found)
            self._is_stale = self._is_stale or (bool(before) and before.isdisjoint(now))
            self._seen[key] = now
        return self._is_stale

    def forgotten(self) -> None:
        """ComfyUI has dropped all that it kept."""
        self._is_stale = False
