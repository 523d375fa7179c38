"""The embedded server's options: ComfyUI's own arguments."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
from collections.abc import Sequence

from settee import __version__
from settee.embedded.folders import Folders, model_folders

log = logging.getLogger("settee.embedded")

DESCRIPTION = (
    "A small server with ComfyUI's protocol that runs nodes without models. ComfyUI's other options do nothing."
)


class Options(argparse.Namespace):
    """The options of one server."""

    listen: str
    port: int
    folders: Folders
    #: None: no previews.
    preview_size: int | None
    is_cached: bool
    disable_metadata: bool
    max_upload_bytes: int
    argv: list[str]


def parser() -> argparse.ArgumentParser:
    """Return a parser of those that have an effect. Others of ComfyUI's (--cpu, --lowvram, …) are ignored."""
    result = argparse.ArgumentParser(
        prog="python -m settee.embedded", usage="%(prog)s [OPTIONS]", allow_abbrev=False, description=DESCRIPTION
    )
    result.add_argument("--version", action="version", version=f"settee {__version__}")
    result.add_argument("--listen", default="127.0.0.1", nargs="?", const="0.0.0.0", metavar="IP")  # noqa: S104
    result.add_argument("--port", type=int, default=8188)
    result.add_argument("--base-directory", metavar="DIR", help="holds input, output, temp and models; default: here")
    result.add_argument("--input-directory", metavar="DIR")
    result.add_argument("--output-directory", metavar="DIR")
    result.add_argument(
        "--temp-directory", metavar="DIR", help="the folder temp is made in this one, and emptied at start"
    )
    result.add_argument(
        "--extra-model-paths-config", nargs="+", action="append", default=[], metavar="F", help="models elsewhere"
    )
    result.add_argument(
        "--preview-method",
        default="none",
        choices=["none", "auto", "latent2rgb", "taesd"],
        metavar="NAME",
        help="none, auto, latent2rgb or taesd",
    )
    result.add_argument("--preview-size", type=int, default=512, metavar="PIXELS")
    result.add_argument("--cache-none", dest="is_cached", action="store_false", help="run every node of every prompt")
    result.add_argument("--disable-metadata", action="store_true", help="write no graph into files")
    result.add_argument("--max-upload-size", type=float, default=100, metavar="MIB")
    result.add_argument("--verbose", nargs="?", const="DEBUG", default="INFO", metavar="LEVEL")
    return result


def options_from(argv: Sequence[str]) -> Options:
    """Read the command line; exits with code 2 when it is wrong."""
    given, ignored = parser().parse_known_args(argv, Options(argv=list(argv)))
    base = os.path.abspath(given.base_directory or os.curdir)
    if ignored:
        log.debug("arguments without effect here: %s", " ".join(ignored))
    given.folders = Folders(
        input=os.path.abspath(given.input_directory or os.path.join(base, "input")),
        output=os.path.abspath(given.output_directory or os.path.join(base, "output")),
        temp=os.path.join(os.path.abspath(given.temp_directory or base), "temp"),
        models=model_folders(
            os.path.join(base, "models"), itertools.chain.from_iterable(given.extra_model_paths_config)
        ),
    )
    given.max_upload_bytes = round(given.max_upload_size * 1024 * 1024)
    if given.preview_method == "none":
        given.preview_size = None
    return given
