"""Whole models of the operator's that stand in MODELS' way: kept, under another name."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from settee.models.entry import ModelEntry
from settee.models.places import ASIDE
from settee.models.refusals import taken, unusable, words

log = logging.getLogger(__name__)

_MOST = 100


def set_aside(entry: ModelEntry, path: Path) -> None:
    """Rename the file (or link) at ``path``, and say so. Raises IntegrityError, StagingError."""
    for number in range(_MOST):
        aside = path.with_name(f"{path.name}{ASIDE}{f'-{number}' if number else ''}")
        if os.path.lexists(aside):
            continue
        try:
            os.rename(path, aside)
        except OSError as error:
            raise unusable(entry, error) from error
        log.warning("%s is not the model that %s asks for: it is kept as %s", *words(entry), aside.name)
        return
    raise taken(entry, f"is another model, and {_MOST} were set aside before it (…{ASIDE})")
