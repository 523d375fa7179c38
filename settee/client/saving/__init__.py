"""A job's outputs, saved into a folder under names of our own choosing."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from settee.base.text import printable
from settee.client.client_errors import ClientError, JobFailed, JobStopped, NetworkError, UsageError
from settee.client.job_outputs import Output, Unseal, plain_name
from settee.client.saving.part_file import Fetcher, Part, check, open_part, place, write_base64, write_text


@dataclass(frozen=True)
class Saved:
    """An output, and where it is now."""

    path: Path
    output: Output
    #: Bytes, and hex, of the file as it was written.
    size: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` reports of the file."""
        return {"path": str(self.path), **_known(self.output, self.size, self.sha256)}


def make_folder(out: Path) -> None:
    """Make the folder, and check that files can be written to it, before a job is sent. Raises UsageError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open_part(out):
            pass
    except OSError as error:
        raise UsageError(f"cannot write into {out}: {_reason(error)}; choose another folder with --out") from error


@dataclass(frozen=True)
class Result:
    """The result of a job that succeeded."""

    job_id: str
    outputs: tuple[Output, ...]
    #: Milliseconds by phase, the worker's and RunPod's.
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: The seeds that the client put in and the worker drew, by ``node.input``.
    seeds: dict[str, int] = field(default_factory=dict)
    #: As it was sent.
    workflow: dict[str, Any] = field(default_factory=dict, repr=False)
    #: Opens what a sealed job has put on S3: each address leads to a token.
    unseal: Unseal | None = field(default=None, repr=False, compare=False)

    def save(
        self,
        out: str | PathLike[str],
        *,
        overwrite: bool = False,
        metadata: bool = False,
        on_saved: Callable[[Saved], None] = lambda _: None,
        timeout_s: float = 3600.0,
        stop: threading.Event | None = None,
    ) -> list[Saved]:
        """Save the outputs, in their order, into the folder ``out``, which is made.

        Names are of our own choosing (:func:`settee.client.job_outputs.plain_name`). Nothing is ever overwritten, also
        not by two jobs that save at once (``a.png``, ``a-2.png``, …), unless ``overwrite``; two outputs of one job
        never share a name. A file exists whole and checked, or not at all. With ``metadata``, the job's id, seeds,
        timings, warnings and workflow are written next to each file, with what is known of the file: ``a.png.json``.

        ``on_saved`` is called for each file once it is saved. ``timeout_s`` limits each download; ``stop`` ends them.

        Raises one ClientError that names all outputs that were not saved, after the others were: JobStopped when
        ``stop`` was set, NetworkError when one could not be fetched, UsageError when it was only the disk, else
        JobFailed; ``details["saved"]`` are the paths of the others. UsageError when ``out`` takes no files.
        """
        if not self.outputs:
            return []
        folder = Path(out)
        make_folder(folder)
        saved: list[Saved] = []
        failures: list[tuple[Output, ClientError]] = []
        taken: set[str] = set()
        with Fetcher(timeout_s=timeout_s, stop=stop) as fetcher:
            for output in self.outputs:
                try:
                    with open_part(folder) as part:
                        _fill(part, output, fetcher, self.unseal)
                        part.finish()
                        note = self._noted(output, part) if metadata else None
                        path = place(part.path, folder, plain_name(output), taken, overwrite=overwrite, note=note)
                        saved.append(Saved(path, output, part.size, part.sha256))
                except ClientError as error:
                    failures.append((output, error))
                except OSError as error:
                    failures.append((output, UsageError(f"cannot write into {out}: {_reason(error)}")))
                else:
                    on_saved(saved[-1])
        if failures:
            raise self._summed_up(failures, saved)
        return saved

    def _noted(self, output: Output, part: Part) -> Callable[[str], bytes]:
        """Return what writes a file's note once the file's name is known."""
        job = {"job_id": self.job_id, "seeds": self.seeds, "timings": self.timings}
        content = {
            **_known(output, part.size, part.sha256),
            **job,
            "warnings": self.warnings,
            "workflow": self.workflow,
        }

        def written(name: str) -> bytes:
            text = json.dumps({"file": name, **content}, ensure_ascii=False, indent=2)
            # Half a surrogate pair, which UTF-8 cannot take, comes out as its JSON escape.
            return (text + "\n").encode(errors="backslashreplace")

        return written

    def _summed_up(self, failures: Sequence[tuple[Output, ClientError]], saved: Sequence[Saved]) -> ClientError:
        problems = [(plain_name(output), error.message) for output, error in failures]
        kind: type[ClientError] = JobFailed
        if all(isinstance(error, UsageError) for _, error in failures):
            kind = UsageError
        for worse in (NetworkError, JobStopped):
            if any(isinstance(error, worse) for _, error in failures):
                kind = worse
        if len(failures) == 1:
            message = f"{problems[0][0]} was not saved: {problems[0][1]}"
        else:
            message = f"{len(failures)} of {len(self.outputs)} outputs were not saved:"
            message += "".join(f"\n  {name}: {problem}" for name, problem in problems)
        if kind is not JobFailed:
            message += "\n" if len(failures) > 1 else "; "
            message += f"--resume {printable(self.job_id[:300], '?')} fetches the result again"
        details = {
            "saved": [str(one.path) for one in saved],
            "not_saved": [{"file": name, "problem": problem} for name, problem in problems],
        }
        return kind(message, details=details, job_id=self.job_id)


def _fill(part: Part, output: Output, fetcher: Fetcher, unseal: Unseal | None) -> None:
    """Write the output's bytes into the part. Raises ClientError, OSError."""
    if unseal is not None and output.type == "s3_url" and urlsplit(output.data).path.endswith(".sealed"):
        with open_part(part.path.parent) as sealed:
            # Size and hash are those of what is inside.
            fetcher.fetch(replace(output, size=None, sha256=None), sealed)
            sealed.finish()
            unseal(sealed.path, part)
        check(part, output)
    elif output.type in ("s3_url", "url"):
        fetcher.fetch(output, part)
    elif output.type == "base64":
        write_base64(output.data, part)
        check(part, output)
    elif output.type == "text":
        # Not checked: a node's text that was no UTF-8 came with replaced characters, and JSON cannot damage the rest.
        write_text(output.data, part)
    elif output.type == "path":
        raise JobFailed(
            f"it is on the worker's network volume, as {printable(output.data[:300], '?')}: copy it from there "
            "(a pod with the volume, or RunPod's S3 API for volumes), or have the worker deliver to S3"
        )
    else:
        raise JobFailed(
            f"the worker delivered it as {printable(output.type[:300], '?')}, which this client does not know"
        )


def _known(output: Output, size: int, sha256: str) -> dict[str, Any]:
    found = {"kind": output.kind, "node_id": output.node_id, "media_type": output.media_type}
    return {**found, "size": size, "sha256": sha256}


def _reason(error: OSError) -> str:
    return error.strerror or (os.strerror(error.errno) if error.errno else type(error).__name__)
