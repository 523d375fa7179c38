"""Texts that come by a link."""

from __future__ import annotations

from settee.client.client_errors import Ambiguous, UsageError
from tests.unit.client.prompt_shapes.building import SHARED, Shape, encoder, joined, node, sampler, sd15

TEXTS = {
    "a text by a link": Shape(
        sd15(n6=encoder("@20"), n20=node("PrimitiveStringMultiline", value="a fox")), ["20.value"], ["7.text"]
    ),
    "a text by a link through reroutes": Shape(
        sd15(
            n6=encoder("@21"),
            n21=node("Reroute", **{"": "@22"}),
            n22=node("Reroute", **{"": "@20"}),
            n20=node("PrimitiveString", value="a fox"),
        ),
        ["20.value"],
        ["7.text"],
    ),
    "one text linked to base and refiner": Shape(
        sd15(
            n6=encoder("@20"),
            n16=encoder("@20"),
            n20=node("PrimitiveString", value="a fox"),
            n18=sampler(positive="@16", negative="@7"),
            n8=node("VAEDecode", samples="@18", vae="@1/2"),
        ),
        ["20.value"],
        ["7.text"],
    ),
    "one text linked to both sides": Shape(
        sd15(n6=encoder("@20"), n7=encoder("@20"), n20=node("PrimitiveString", value="a fox")), SHARED, SHARED
    ),
    "the prompt is part of the negative": Shape(
        sd15(
            n6=encoder("@20"),
            n7=encoder("@21"),
            n20=node("PrimitiveString", value="a fox"),
            n21=joined("not like", "@20"),
        ),
        SHARED,
        (Ambiguous, "put together"),
    ),
    "a text put together of two": Shape(
        sd15(n6=encoder("@20"), n20=joined("@21", "35mm photo"), n21=node("PrimitiveString", value="a fox")),
        (Ambiguous, "put together"),
        ["7.text"],
    ),
    "a text put together, one part empty": Shape(
        sd15(n6=encoder("@20"), n20=joined("@21", ""), n21=node("PrimitiveString", value="a fox")),
        ["21.value"],
        ["7.text"],
    ),
    "a prefix, and an empty text to be filled": Shape(
        sd15(n6=encoder("@20"), n20=joined("masterpiece", "@21"), n21=node("PrimitiveString", value="")),
        (Ambiguous, "put together"),
        ["7.text"],
    ),
    "a text trimmed": Shape(
        sd15(n6=encoder("@20"), n20=node("StringTrim", string=" a fox ", mode="Both")), ["20.string"], ["7.text"]
    ),
    "a template that is filled in": Shape(
        sd15(n6=encoder("@20"), n20=node("StringReplace", string="a photo of X", find="X", replace="a fox")),
        (Ambiguous, "put together"),
        ["7.text"],
    ),
    "a text of a node nobody knows": Shape(
        sd15(n6=encoder("@20"), n20=node("Text Multiline", text="a fox")), ["20.text"], ["7.text"]
    ),
    "a text out of a file": Shape(
        sd15(n6=encoder("@20"), n20=node("LoadPrompts", file_path="prompts.txt", topic="foxes")),
        (UsageError, "but made by"),
        ["7.text"],
    ),
    "a caption of a picture": Shape(
        sd15(
            n6=encoder("@20"),
            n20=node("Florence2Run", image="@14", florence2_model="@21", text_input="", task="caption"),
            n21=node("Florence2ModelLoader", model="base"),
            n14=node("LoadImage", image="a.png"),
        ),
        (UsageError, "but made by"),
        ["7.text"],
    ),
    "an answer of a language model": Shape(
        sd15(n6=encoder("@20"), n20=node("TextGenerate", clip="@1/1", prompt="describe a fox", max_length=100)),
        (UsageError, "but made by"),
        ["7.text"],
    ),
    "a styler of both texts": Shape(
        sd15(
            n6=encoder("@20"),
            n7=encoder("@20/1"),
            n20=node("SDXLPromptStyler", text_positive="a fox", text_negative="blurry", style="base", log_prompt="No"),
        ),
        ["20.text_positive"],
        ["20.text_negative"],
    ),
    "a styler, taken the wrong way round": Shape(
        sd15(
            n6=encoder("@20/1"),
            n7=encoder("@20"),
            n20=node("SDXLPromptStyler", text_positive="a fox", text_negative="blurry", style="base", log_prompt="No"),
        ),
        (Ambiguous, "it is not known which output"),
        (Ambiguous, "it is not known which output"),
    ),
    "a switch between two texts": Shape(
        sd15(n6=encoder("@20"), n20=node("Any Switch", any_01="@21", any_02="@22"), n21=joined("a fox", ""))
        | {"22": node("PrimitiveString", value="a wolf")},
        (Ambiguous, "put together"),
        ["7.text"],
    ),
}
