"""A finished part gets its name: the first that is free, and nobody else's between the look and the taking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from settee.client.saving.names import numbered, same
from settee.client.saving.part import open_part

#: Appended to the whole name of a file: ``a.png`` and ``a.mp4`` of one job are told apart.
NOTE_SUFFIX = ".json"

#: The JSON that is to lie beside a file of this name.
Note = Callable[[str], bytes]


def place(part: Path, folder: Path, name: str, taken: set[str], *, overwrite: bool, note: Note | None) -> Path:
    """Move the part to its name, or to the next free one: ``a-2.png``. Where it is now. Raises OSError.

    What was there before stays, unless ``overwrite``; names in ``taken`` (of this job, as :func:`names.same` has
    them) are never used twice, and the ones used are added. With a note, its name must be free too.
    """
    for candidate in numbered(name):
        names = [candidate, candidate + NOTE_SUFFIX] if note else [candidate]
        paths = [folder / one for one in names]
        if any(same(one) in taken for one in names):
            continue
        if any(path.is_dir() if overwrite else os.path.lexists(path) for path in paths):
            continue
        if note and not _write_note(paths[1], note(candidate), overwrite=overwrite):
            continue
        if overwrite:
            os.replace(part, paths[0])
        elif not _taken(part, paths[0]):
            if note:
                paths[1].unlink(missing_ok=True)
            continue
        taken.update(same(one) for one in names)
        return paths[0]
    raise AssertionError("numbers end")


def _write_note(path: Path, content: bytes, *, overwrite: bool) -> bool:
    with open_part(path.parent) as part:
        part.write(content)
        part.finish()
        if overwrite:
            os.replace(part.path, path)
            return True
        return _taken(part.path, path)


def _taken(source: Path, target: Path) -> bool:
    """Give the file this name as well, or instead; False when the name was taken. Whoever comes second gets False."""
    try:
        os.link(source, target)
        return True
    except FileExistsError:
        return False
    except OSError:
        # FAT, many network shares and Android have no hard links: take the name with an empty file, then fill it.
        try:
            target.open("xb").close()
        except FileExistsError:
            return False
    try:
        os.replace(source, target)
    except OSError:
        with contextlib.suppress(OSError):
            target.unlink()
        raise
    return True
