"""What the names of inputs and classes say about prompts: all that is known of a class that is neither ComfyUI's own
nor in a registry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache


class Side(Enum):
    """What an input takes, as far as it is conditioning."""

    POSITIVE = 0
    NEGATIVE = 1
    #: Conditioning of no side of its own: that of who asks, and a sampler's positive.
    NEUTRAL = 2
    #: Guidance by no prompt at all (PerpNegGuider).
    EMPTY = 3
    #: All that a sampler needs in one link; which output of an unpacking node is taken says the side.
    BUNDLE = 4


#: Inputs of sampling nodes. One that has two of them samples, also when it passes its conditioning on.
SAMPLING_INPUTS = frozenset(["sampler_name", "steps", "cfg", "denoise", "noise_seed", "sigmas", "sampler"])
#: Inputs for one prompt's words in one of several language models.
PARTS = frozenset(["clip_l", "clip_g", "t5xxl", "llama", "bert", "mt5xl", "text_g", "text_l", "qwen25_7b"])
#: Inputs of nodes that take a prompt themselves, as ComfyUI's API nodes do.
PROMPT_INPUTS = frozenset(["prompt", "prompt_text", "positive_prompt", "text_prompt"])
NEGATIVE_PROMPT_INPUTS = frozenset(["negative_prompt", "negative_prompt_text", "prompt_negative"])


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TEXTS = _words("text texts prompt prompts string strings caption captions tags description")
#: Of inputs that hold a choice, a file or a text which is no prompt.
_CHOICES = _words(
    """
    action algorithm attention backend base bracket case ckpt clean combine crop delimiter device directory dtype
    embed embedding embeddings embeds encoder file filename fit folder format index instruction instructions
    interpolation joiner key language length level log lora lyrics method mode model name norm normalization operation
    option padding parser path position precision prefix preset quality quantization resolution role sampler scheduler
    separator seq size strength style suffix system task template tidy token tokenizer type url version weight
    weighting
    """
)
_SETTINGS = _words(
    """
    model models vae clip strength scale weight weights noise sigmas net vision mode type start end point points
    coordinates coords
    """
)
_MEDIA = _words(
    """
    image images img picture pictures video videos audio mesh svg glb frame frames sample samples latent latents pixels
    id voxel source destination animation
    """
)
_MASKS = _words("mask masks bbox bboxes segs seg sams detector")
_SWITCH = re.compile(r"(?:input|any|value|in|a|b|x|on_true|on_false|if_true|if_false|true|false|option)[_ ]?\d*")


def words(name: str) -> frozenset[str]:
    """A name's words, lower case: ``positive_A`` → positive, a; ``promptText2`` → prompt, text, 2."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))


# --- conditioning ----------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def conditioning_side(name: str) -> Side | None:
    """What a linked input takes, by its name; None when it does not sound like conditioning."""
    said = words(name)
    if is_other_kind(name):
        return None
    if "empty" in said:
        return Side.EMPTY
    side = sided(name)
    if side is not None:
        return side
    if said & _words("cond conds conditioning conditionings"):
        return Side.NEUTRAL
    return Side.BUNDLE if said & _words("pipe ctx context bus embed embeds") else None


def sided(name: str) -> Side | None:
    """POSITIVE or NEGATIVE, where the name of an input or an output says so (``CONDITIONING+``)."""
    said = words(name)
    if said & _words("negative neg uncond unconditional") or name.endswith("-"):
        return Side.NEGATIVE
    return Side.POSITIVE if said & _words("positive pos") or name.endswith("+") else None


def is_other_kind(name: str) -> bool:
    """Whether a linked input sounds like a picture, a model or a number."""
    return bool(words(name) & (_SETTINGS | _MEDIA | _MASKS))


def is_switch_name(name: str) -> bool:
    """Whether an input is one of those that a reroute or a switch chooses from, whatever they carry."""
    return bool(_SWITCH.fullmatch(name.lower())) or not name.strip()


def empties(class_type: str) -> bool:
    """Whether a class makes conditioning that nothing of its source is left in."""
    return bool(re.search(r"zero_?out", class_type, re.IGNORECASE))


def is_kept_away_from(class_type: str) -> bool:
    """Whether a class takes its one condition as a negative: normalized attention guidance."""
    return bool(re.search(r"NAG(?![a-z])", class_type))


# --- texts -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def is_text_name(name: str) -> bool:
    """Whether an input sounds as if it held a prompt, or a part of one."""
    return name in PARTS or bool(words(name) & _TEXTS and not words(name) & _CHOICES)


def is_choice_name(name: str) -> bool:
    """Whether an input sounds as if its text were a choice, a file or a setting."""
    return name not in PARTS and bool(words(name) & _CHOICES)


def is_number_name(name: str) -> bool:
    """Whether a linked input sounds as if it chose among texts by a number."""
    return bool(words(name) & _words("seed index select selector count start end length switch"))


def is_value_name(name: str) -> bool:
    """Whether the one text of a node that has no other input sounds as if it were what the node is for."""
    return name.lower() in ("value", "content", "contents", "positive", "negative")


def is_language_model(name: str) -> bool:
    """Whether a linked input sounds like what a text encoder encodes with."""
    said = words(name)
    is_one = name.lower() in ("t5", "t5xxl") or bool(said & _words("clip encoder conditioner tokenizer"))
    return is_one and "vision" not in said


def keeps_texts(class_type: str) -> bool:
    """Whether a class sounds as if it noted a prompt beside a picture, or showed one."""
    return bool(words(class_type) & _words("save saver preview show display metadata inspect inspector"))


def made(consumers: Iterable[str]) -> str | None:
    """What a node makes, by the names of the inputs that take it: ``media``, ``text`` or ``mask``, the first of these
    that fits one of them; ``media`` when nothing takes it; None when one of the names says nothing."""
    kinds = set()
    for name in consumers:
        said = words(name)
        if said & _MASKS:
            kinds.add("mask")
        elif said & _MEDIA:
            kinds.add("media")
        elif is_text_name(name):
            kinds.add("text")
        else:
            return None
    return next((kind for kind in ("media", "text", "mask") if kind in kinds), "media")
