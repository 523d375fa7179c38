"""settee's own stand-ins: a sampler without a model, a user of model files, and a node that fails on request."""

from __future__ import annotations

import hashlib
import os
import random
import time
from typing import Any

from PIL import Image, ImageFilter

from settee.embedded.broadcast import PreviewImage
from settee.embedded.folders import Folders
from settee.embedded.nodes.base import ImageBatch, Inputs, Node, NodeEnv, NodeSpec, Outcome, choice, decimal, integer

_MODULE = "settee.embedded.nodes.own"
_POLL_SECONDS = 0.005
_CRASH_DELAY_SECONDS = 0.05


class SetteeSampler(Node):
    """Turns a picture step by step into noise that depends on the seed only, as a sampler's output would.

    Each step takes delay_ms, reports progress, sends a preview if previews are on, and can be interrupted.
    """

    spec = NodeSpec(
        "SetteeSampler",
        "settee",
        required={
            "image": ("IMAGE",),
            "seed": integer(0, 0, 2**64 - 1, control_after_generate=True),
            "steps": integer(20, 1, 10_000),
            "delay_ms": integer(50, 0, 60_000),
        },
        returns=("IMAGE",),
        module=_MODULE,
        display_name="Settee Sampler",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["image"]
        steps = inputs["steps"]
        target = self._noise(inputs["seed"], images.size).convert(images[0].mode)
        current = images
        for step in range(1, steps + 1):
            self._work(env, inputs["delay_ms"] / 1000)
            share = 0.8 * step / steps
            current = ImageBatch(Image.blend(image, target, share) for image in images)
            preview = None
            if env.preview_size is not None:
                preview = PreviewImage("JPEG", current[0].convert("RGB"), env.preview_size)
            env.report(step, steps, preview)
        return Outcome((current,))

    @staticmethod
    def _work(env: NodeEnv, seconds: float) -> None:
        """Sleep for one step; as in a real step, an interrupt is noticed only after it."""
        if seconds:
            time.sleep(seconds)
        env.check_interrupted()

    @staticmethod
    def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
        """Smooth coloured clouds: 16 x 16 random colours scaled up and blurred."""
        colours = random.Random(seed).randbytes(16 * 16 * 3)  # noqa: S311 (a picture, not a secret)
        small = Image.frombytes("RGB", (16, 16), colours).filter(ImageFilter.GaussianBlur(1))
        return small.resize(size, Image.Resampling.BICUBIC)


def _checkpoint_inputs(folders: Folders) -> Inputs:
    return {"image": ("IMAGE",), "ckpt_name": (folders.model_files("checkpoints"),)}


class SetteeCheckpointTint(Node):
    """Tints a picture with a colour from the SHA-256 of a checkpoint file: shows which model was really there."""

    spec = NodeSpec(
        "SetteeCheckpointTint",
        "settee",
        required=_checkpoint_inputs,
        returns=("IMAGE",),
        module=_MODULE,
        display_name="Settee Checkpoint Tint",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        with open(env.folders.model_path("checkpoints", inputs["ckpt_name"]), "rb") as file:
            digest = hashlib.sha256(file.read()).digest()
        images: ImageBatch = inputs["image"]
        tint = Image.new(images[0].mode, images.size, tuple(digest[: len(images[0].getbands())]))
        return Outcome((images.each(lambda image: Image.blend(image, tint, 0.5)),))


class OutOfMemoryError(RuntimeError):
    """Reported under the name of PyTorch's exception."""


OutOfMemoryError.__module__ = "torch"


def out_of_memory() -> OutOfMemoryError:
    """An exception that reads like CUDA's."""
    return OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.99 GiB of which "
        "1.23 GiB is free."
    )


def exit_soon() -> None:
    """End the process as a crash would, once the messages sent so far are on their way."""
    time.sleep(_CRASH_DELAY_SECONDS)
    os._exit(9)


class SetteeFault(Node):
    """Passes a picture through and fails as asked.

    error: raises RuntimeError(message). oom: raises torch.OutOfMemoryError, the first ``times`` times it runs in
    this server (0: always), or with until_free whenever /free was not posted since the last time. sleep: ignores
    interrupts for ``seconds``. exit: the process dies with exit code 9. hang: runs until interrupted.
    """

    spec = NodeSpec(
        "SetteeFault",
        "settee",
        required={
            "image": ("IMAGE",),
            "fault": choice("none", "error", "oom", "sleep", "exit", "hang"),
        },
        optional={
            "seconds": decimal(1.0, 0.0, 3600.0),
            "message": ("STRING", {"default": "SetteeFault was asked to fail"}),
            "times": integer(0, 0, 1000),
            "until_free": ("BOOLEAN", {"default": False}),
        },
        returns=("IMAGE",),
        module=_MODULE,
        display_name="Settee Fault",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        fault = inputs["fault"]
        if fault == "error":
            raise RuntimeError(inputs.get("message", "SetteeFault was asked to fail"))
        if fault == "oom":
            self._fill_memory(env, inputs.get("times", 0), inputs.get("until_free", False))
        elif fault == "sleep":
            time.sleep(inputs.get("seconds", 1.0))
        elif fault == "exit":
            exit_soon()
        elif fault == "hang":
            while True:  # ended by Interrupted, or with the process
                env.check_interrupted()
                time.sleep(_POLL_SECONDS)
        return Outcome((inputs["image"],))

    @staticmethod
    def _fill_memory(env: NodeEnv, times: int, until_free: bool) -> None:
        fits = env.memory.take_freed() if until_free else bool(times) and env.memory.raised >= times
        if not fits:
            env.memory.run_out()
            raise out_of_memory()


NODES: tuple[type[Node], ...] = (SetteeSampler, SetteeCheckpointTint, SetteeFault)
