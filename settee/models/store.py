"""Every model that the worker was told of, and what is being done about each.

Placing begins when the worker starts, beside ComfyUI's own start. A job waits only for the models that its workflow
names; lazy entries, and those that it brings, are placed when it does. However many ask for a file, it is placed once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from settee.base.threads import Stopped
from settee.comfyui.workflow import Workflow
from settee.errors import ConfigError, InvalidRequest, JobCanceled, SetteeError, StagingError
from settee.models import jobs_own, spec
from settee.models.budget import Budget
from settee.models.entry import ModelEntry
from settee.models.judging import Content
from settee.models.log_lines import LogLines
from settee.models.names import name_of
from settee.models.needs import Named, named_models, wanted
from settee.models.order import Order
from settee.models.placed import Shelf
from settee.models.placing import Placing, Progressed, Tools
from settee.models.readahead import ReadAhead
from settee.models.repositories import new_placing
from settee.models.transfer.gate import Gate
from settee.request import Bucket
from settee.settings import Settings

log = logging.getLogger(__name__)

#: Threads that link, and look through what lies there.
_LINKING = 4
#: How long a download that was given up may take to end.
_END_S = 5.0

#: Told how one entry ended: words, or the error.
Ended = Callable[[ModelEntry, "str | SetteeError"], None]


class ModelStore:
    """The models of one worker. Nothing happens before :meth:`start`. Who is told of nothing else: the log."""

    def __init__(
        self, settings: Settings, *, on_progress: Progressed | None = None, on_end: Ended | None = None
    ) -> None:
        self.settings = settings
        lines = LogLines()
        self._on_progress = on_progress or lines.progress
        self._on_end = on_end or lines.end
        self.entries: tuple[ModelEntry, ...] = ()
        shelf = Shelf(settings.models_folder)
        self.tools = Tools(settings, shelf, Budget(shelf, settings), Gate(settings.models_connections))
        self._read_ahead = ReadAhead() if settings.models_read_ahead else None
        self._read_before: set[Path] = set()
        self._changed = threading.Condition()
        #: Those under way. An ended one is let go of: it holds its job's S3 keys.
        self._placings: dict[str, Placing] = {}
        #: What each name held when a job last used it: ComfyUI keeps what it loaded under a name.
        self._seen: dict[str, Content | None] = {}
        #: Whether ComfyUI may keep what a name held before.
        self._is_stale = False
        self._threads: set[threading.Thread] = set()
        self._closing = False

    # --- life ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read MODELS and MODELS_FILE. Raises ConfigError with every bad entry."""
        self.entries = spec.configured(self.settings)
        for doubt in spec.doubts(self.entries):
            log.warning("%s", doubt)
        if self.entries and not self._has_folder:
            raise ConfigError("MODELS needs MODELS_DIR: the models folder of the ComfyUI at COMFY_URL")

    @property
    def _has_folder(self) -> bool:
        """Whether it is known where ComfyUI keeps its models: another's may be on another machine."""
        return self.settings.comfy_url is None or self.settings.models_dir is not None

    def start(self) -> None:
        """Begin to place what is not lazy of what :meth:`load` has read, and return at once."""
        if self._has_folder:
            self._spawn(self.tools.shelf.wipe_left, name="models")
        eager = [entry for entry in self.entries if not entry.lazy]
        if eager:
            self._spawn(self._place_all, eager, name="models")

    def give_up(self) -> None:
        """Give up what is being placed, for good (a later start resumes it); waits for nothing."""
        with self._changed:
            self._closing = True
            placings = list(self._placings.values())
        for placing in placings:
            placing.give_up()

    def close(self) -> None:
        """The same, and what is being read; returns when it has ended, or soon."""
        self.give_up()
        with self._changed:
            threads = list(self._threads)
        if self._read_ahead is not None:
            self._read_ahead.close()
        deadline = time.monotonic() + _END_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def place(self, entries: Sequence[ModelEntry]) -> dict[str, str | SetteeError]:
        """Place these now and wait for all: path → how it ended. For the command line."""
        mine = self._place_all(entries)
        with self._changed:
            while not all(placing.outcome is not None for placing in mine):
                self._changed.wait(1.0)  # in pieces: a wait without limit would not let Ctrl-C through
            return {str(placing.entry.path): placing.outcome for placing in mine if placing.outcome is not None}

    # --- jobs --------------------------------------------------------------------------------------------------

    def request(
        self,
        workflow: Workflow,
        own: Sequence[ModelEntry] = (),
        bucket: Bucket | None = None,
        *,
        is_sealed: bool = False,
    ) -> Order:
        """Begin to place what a workflow names and what its job brings. Raises InvalidRequest for a clash of names.

        What a sealed job brings is wiped when it ends.
        """
        own = [replace(entry, sealed=is_sealed and entry.from_job) for entry in self._checked(own, bucket)]
        self.read_ahead(named_models(workflow))
        known = [*self.entries, *own]
        mine = {str(entry.path): entry for entry in own}
        needed = mine | {path: entry for path, entry in wanted(workflow, known).items() if path not in mine}
        # Before the first of them begins to make room for itself.
        self.tools.budget.keep(list(needed))
        placings = [self._begin(entry, bucket if entry.from_job else None, urgent=True) for entry in needed.values()]
        return Order(self, placings, known, own=mine, wipes=is_sealed)

    def read_ahead(self, named: Iterable[Named]) -> None:
        """Have the files that these names mean read into the page cache, where they lie already."""
        if self._read_ahead is None:
            return
        roots = (self.settings.models_folder, *map(Path, self.settings.models_extra_dirs))
        for item in named:
            for folder in item.folders:
                name = Path(folder, item.value)
                if name.is_absolute() or ".." in name.parts:
                    continue
                # Not Path.is_file, which raises what it does not expect: a name may be too long for the disk.
                path = next((root / name for root in roots if os.path.isfile(root / name)), None)
                if path is not None:
                    self._read(path)

    def _checked(self, own: Sequence[ModelEntry], bucket: Bucket | None) -> list[ModelEntry]:
        if own and not self._has_folder:
            raise InvalidRequest(
                "this worker cannot place models: set MODELS_DIR on it, the models folder of the ComfyUI at COMFY_URL"
            )
        return jobs_own.checked(own, self.entries, self.settings, bucket)

    # --- placing ------------------------------------------------------------------------------------------------

    def _place_all(self, entries: Sequence[ModelEntry]) -> list[Placing]:
        """What is on this host is linked by a few threads; what has to be fetched gets one each."""
        begun: list[Placing] = []
        with ThreadPoolExecutor(_LINKING, thread_name_prefix="models") as pool:
            for entry in entries:
                if self._closing:
                    break
                placing = self._begin(entry, None)
                begun.append(placing)
                if placing.outcome is None:
                    pool.submit(self._work, placing, is_shared=True)
        return begun

    def _begin(self, entry: ModelEntry, bucket: Bucket | None, *, urgent: bool = False) -> Placing:
        """The placing of this entry that is under way, or a new one: what is in place costs a look, here and now.

        An urgent one is begun; else it waits for somebody to.
        """
        key = str(entry.path)
        with self._changed:
            placing = self._placings.get(key)
            is_new = placing is None or placing.is_over or not placing.is_for(entry)
            if placing is None or is_new:
                placing = self._placings[key] = new_placing(entry, self.tools, self._on_progress, bucket)
            if urgent:
                placing.waiting += 1
                placing.hurry(True)
        if is_new:
            self._settle(placing, placing.at_once)
        if urgent and placing.outcome is None:
            self._start(placing, self._work)
        return placing

    def _start(self, placing: Placing, work: Callable[[Placing], object]) -> None:
        """In a thread of its own; without one to be had, whoever waits for it must learn of that."""
        try:
            self._spawn(work, placing, name="model")
        except RuntimeError:
            what = f"the model {placing.entry.path} could not be placed: the worker may have no more threads"
            self._end(placing, StagingError(what, retryable=True))

    def _work(self, placing: Placing, is_shared: bool = False) -> None:
        """Do what is left of it; a thread that others need is not held up by a network."""
        if not placing.take() or self._settle(placing, placing.here):
            return
        if is_shared:
            self._start(placing, lambda placing: self._settle(placing, placing.fetched))
        else:
            self._settle(placing, placing.fetched)

    def _settle(self, placing: Placing, step: Callable[[], str | None]) -> bool:
        """Whether this step ended it, one way or the other."""
        try:
            outcome: str | SetteeError | None = step()
        except SetteeError as error:
            outcome = error
        except Stopped:
            outcome = JobCanceled("the download was given up")
        except Exception as error:  # a thread's edge: whoever waits for it must learn of it
            log.exception("placing a model failed")
            outcome = SetteeError(f"the model {placing.entry.path} could not be placed ({type(error).__name__})")
        if outcome is None:
            return False
        self._end(placing, outcome)
        return True

    def _end(self, placing: Placing, outcome: str | SetteeError) -> None:
        placing.hurry(False)
        self._on_end(placing.entry, outcome)
        if not isinstance(outcome, SetteeError) and (placing.waiting or placing.entry.preload):
            for part in placing.parts:
                self._read(self.tools.shelf.path_of(part.entry))
        with self._changed:
            placing.outcome = outcome
            key = str(placing.entry.path)
            if self._placings.get(key) is placing:
                del self._placings[key]
            self._changed.notify_all()

    def _read(self, path: Path) -> None:
        """Read it ahead, once: later jobs find it where ComfyUI has it, and a volume is not read for nothing."""
        if self._read_ahead is not None and path not in self._read_before:
            self._read_before.add(path)
            self._read_ahead.add(path)

    def _spawn(self, target: Callable[..., object], *args: object, name: str) -> None:
        def work() -> None:
            try:
                target(*args)
            finally:
                with self._changed:
                    self._threads.discard(thread)

        # Daemons: one that waits for a server's answer must not hold the worker's end.
        thread = threading.Thread(target=work, name=name, daemon=True)
        # Before it starts: one that has done its work is alive for a moment more, and would stay here.
        with self._changed:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:
            with self._changed:
                self._threads.discard(thread)
            raise

    # --- for an order ------------------------------------------------------------------------------------------

    def wait_end(self, placings: Sequence[Placing], timeout_s: float) -> None:
        """Until one of these has ended, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: any(placing.outcome is not None for placing in placings), timeout_s)

    def leave(self, placings: Sequence[Placing]) -> None:
        """A job waits for these no longer: what nobody else wants is given up."""
        paths = {str(one.entry.path) for placing in placings for one in (placing, *placing.parts)}
        self.tools.budget.let_go(paths)
        with self._changed:
            for placing in placings:
                placing.waiting -= 1
                if placing.waiting or placing.outcome is not None:
                    continue
                placing.hurry(False)
                if placing.entry.lazy or placing.entry.from_job:
                    placing.give_up()

    def await_end(self, entries: Iterable[ModelEntry], timeout_s: float) -> bool:
        """Wait until none of these is being placed any more: what was given up may still land. Whether that is so."""
        paths = {str(entry.path) for entry in entries}
        with self._changed:
            return self._changed.wait_for(lambda: not paths & self._placings.keys(), timeout_s)

    def wipe(self, placings: Sequence[Placing]) -> None:
        """Overwrite these in place and remove them, with what of them was downloaded so far."""
        with self._changed:
            for placing in placings:
                placing.give_up()
            self._changed.wait_for(lambda: all(item.outcome is not None for item in placings), _END_S)
        for part in (part for placing in placings for part in placing.parts):
            self.tools.shelf.wipe(part.entry)

    def has_changed(self, placings: Iterable[Placing]) -> bool:
        """Whether a name holds another file than when a job last used it, since :meth:`forgotten` was last told."""
        for part in (part for placing in placings for part in placing.parts):
            key, now = name_of(part.entry.path), self.tools.shelf.content_of(part.entry)
            # An earlier job may have used what lay there without bringing it.
            before = self._seen.get(key, part.found)
            self._is_stale = self._is_stale or before not in (None, now)
            self._seen[key] = now
        return self._is_stale

    def forgotten(self) -> None:
        """ComfyUI has dropped all that it kept."""
        self._is_stale = False


__all__ = ["ModelStore"]
