"""The command line's options: text and numbers. Nothing is read or asked here, nor imported that costs time."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from settee import __version__

PROG = "settee-client"
DESCRIPTION = """\
Send a ComfyUI workflow to a RunPod endpoint, a local worker
or a bare ComfyUI, and save its outputs.

  settee-client workflow.json --prompt "a fox" --img a.png
  settee-client picture.png --dry-run
      the workflow in a picture, and what would be sent
  settee-client keygen [FILE]
      a key for sealed jobs
"""

EPILOG = """\
exit codes: 0 all is saved; 2 usage (nothing was sent);
3 the worker refused the job; 4 the job failed;
5 canceled or out of time; 6 network or key.

environment: RUNPOD_ENDPOINT_ID, RUNPOD_API_KEY;
ENCRYPTION_KEY seals jobs; BUCKET_ENDPOINT_URL,
BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY, BUCKET_NAME
receive files that are too large for a request;
COMFY_ORG_API_KEY for API nodes.
"""

#: A row of a batch may set these; the rest belongs to the whole run.
ROW_KEYS = (
    *("workflow", "name", "img", "mask", "video", "audio", "prompt", "negative", "seed", "keep_seed", "steps", "cfg"),
    *("width", "height", "denoise", "sampler", "scheduler", "ckpt", "lora", "set"),
)


class Misuse(Exception):
    """The arguments are not valid."""


class Parser(argparse.ArgumentParser):
    """Raises Misuse instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"argument ([\w/-]+): expected (one|at least one) argument$", message):
            message += f"; a value that begins with - needs an equals sign: {found[1].split('/')[-1]}=-VALUE"
        raise Misuse(f"{message} (--help lists all options)")


def parser(prog: str = PROG) -> Parser:
    """Return the parser of the one command. An option that is not given is None, False or an empty list."""
    top = Parser(
        prog=prog,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument(
        "workflow",
        nargs="?",
        help="a file (API format, or the editor's with --comfy or --registry), - for stdin, a name from workflows/, or "
        "a PNG, WEBP or MP4 with the workflow in its metadata",
    )
    top.add_argument("--version", action="version", version=f"settee {__version__}")
    _targets(top.add_argument_group("target"))
    _injection(top.add_argument_group("workflow inputs"))
    _job(top.add_argument_group("job"))
    _many(top.add_argument_group("many jobs"))
    _jobs_sent(top.add_argument_group("jobs sent before"))
    _results(top.add_argument_group("outputs"))
    return top


def _targets(group: argparse._ArgumentGroup) -> None:
    one = group.add_mutually_exclusive_group()
    one.add_argument("--endpoint", metavar="ID", help="a RunPod endpoint (default: RUNPOD_ENDPOINT_ID, if set)")
    one.add_argument(
        "--url",
        type=_url,
        help="base URL of a worker's API, such as the SDK's local one (default: http://127.0.0.1:8000)",
    )
    one.add_argument("--comfy", type=_url, metavar="URL", help="a bare ComfyUI, without a worker")
    group.add_argument("--sync", action="store_true", help="/runsync instead of /run: requests up to 20 MB")
    group.add_argument(
        "--registry",
        metavar="URL|FILE",
        help="a ComfyUI (or its saved /object_info) to convert the editor's format with",
    )
    group.add_argument(
        "--key-file", type=Path, metavar="FILE", help="seal the job with the key in this file (or ENCRYPTION_KEY)"
    )


def _injection(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    for name, what in (("img", "images"), ("mask", "masks"), ("video", "videos"), ("audio", "sound files")):
        add(
            f"--{name}",
            nargs="+",
            action="extend",
            default=[],
            metavar="[NODE=]FILE",
            help=f"{what} for the loaders, lowest node id first; NODE is an id or a title",
        )
    add("--prompt", help="the positive prompt, at the text that the sampler uses")
    add("--negative", help="the negative prompt")
    seeds = group.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=_seed, metavar="N", help="every seed (default, and -1: each is drawn at random)")
    seeds.add_argument("--keep-seed", action="store_true", help="leave the workflow's seeds unchanged")
    add("--steps", type=int, metavar="N")
    add("--cfg", type=float, metavar="X")
    add("--width", type=int, metavar="PX")
    add("--height", type=int, metavar="PX")
    add("--denoise", type=float, metavar="X", help="0 to 1")
    add("--sampler", metavar="NAME")
    add("--scheduler", metavar="NAME")
    add("--ckpt", metavar="FILE", help="the checkpoint's name")
    add("--lora", action="append", default=[], metavar="NAME[:STRENGTH]", help="once per loader")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE",
        help='any input: 6.inputs.text="a fox", "Title.text=a fox"; overrides the other options',
    )
    add("--max-side", type=_count(1), metavar="PX", help="scale larger images down to this size")
    add("--jpeg", type=_count(1, 100), nargs="?", const=90, metavar="QUALITY", help="send images as JPEG (90)")


def _job(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dry-run", action="store_true", help="show what would be sent, without sending it")
    add("--save-workflow", metavar="FILE", help="write the resulting workflow (- for stdout)")
    add("--timeout", type=_seconds, default=3600.0, metavar="S", help="maximum wait in seconds (default: 3600)")
    add("--job-timeout", type=_seconds, metavar="S", help="the worker's time limit for the job, seconds")
    add("--delivery", choices=("auto", "base64", "s3"), help="how results come back")
    add("--model", action="append", default=[], metavar="SPEC", help="a model the job brings (docs/models.md)")
    add("--allow-partial", action="store_true", help="run the valid outputs of a partly invalid workflow")
    add("--detach", action="store_true", help="print the job's id, without waiting")


def _many(group: argparse._ArgumentGroup) -> None:
    many = group.add_mutually_exclusive_group()
    many.add_argument("--repeat", type=_count(1, 100_000), metavar="N", help="run it N times")
    many.add_argument(
        "--batch",
        metavar="FILE",
        help=f"one job per line: JSONL or CSV, with {', '.join(ROW_KEYS[:4])}, prompt, … as the options are called",
    )
    group.add_argument("--jobs", type=_count(1, 1000), default=4, metavar="N", help="how many at once (default: 4)")


def _jobs_sent(group: argparse._ArgumentGroup) -> None:
    one = group.add_mutually_exclusive_group()
    one.add_argument("--resume", metavar="JOB", help="wait for a job that was sent before, and save its outputs")
    one.add_argument("--cancel", metavar="JOB", help="ask the target to cancel a job")
    one.add_argument("--health", action="store_true", help="show the target's own health report")


def _results(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the outputs (default: out)")
    add("--overwrite", action="store_true", help="replace files of the same name")
    add("--metadata", action="store_true", help="write a JSON file next to each output: job, seeds, timings, workflow")
    add("--json", action="store_true", help="one JSON document on stdout")
    add("--open", action="store_true", help="open the first picture")
    add("--quiet", action="store_true", help="errors only")


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")) or len(text.split("//", 1)[1].strip("/")) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} must begin with http:// or https://")
    return text.rstrip("/")


def _within(kind: type[float], least: float, most: float, words: str) -> Callable[[str], Any]:
    """Return what parses a number within limits."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be {words}")
        return number

    return parse


def _count(least: int, most: float = math.inf) -> Callable[[str], Any]:
    return _within(int, least, most, f"a whole number from {least}" + (f" to {most}" if most < math.inf else ""))


def _seed(text: str) -> int | None:
    return None if text.strip() == "-1" else _count(0, (1 << 64) - 1)(text)


_seconds = _within(float, sys.float_info.min, sys.float_info.max, "a number of seconds, more than 0")
