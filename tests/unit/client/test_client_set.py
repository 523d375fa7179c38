"""``--set NODE.INPUT=VALUE``: how a place is named, and that a value keeps its type."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject.selectors import LiveGraph, set_changes
from settee.comfyui.node_registry import NodeRegistry

REAL = Path(__file__).parents[2] / "data" / "real-workflows"


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


def workflow() -> dict[str, Any]:
    return {
        "6": node("CLIPTextEncode", "Positive", text="a cat", clip=["4", 1]),
        "7": node("CLIPTextEncode", "v1.5 a=b Negative", text="bad", clip=["4", 1]),
        "57:8": node("KSampler", "Sampler", seed=1, steps=20, cfg=6, denoise=0.5, sampler_name="euler", add=True),
        "8": node("Lists", "Twin", points={"__value__": [1, "a"]}, names=["a", "b", "c"], box={"x": 1}, none=None),
        "9": node("VAEDecode", "twin", samples=["57:8", 0]),
        "10": node("Resize", **{"mode": "scale", "mode.width": 512, "inputs.odd": 1}),
    }


def node_of(graph: dict[str, Any], text: str) -> str:
    return LiveGraph(graph).named(text)


def value_of(text: str, graph: dict[str, Any] | None = None) -> tuple[str, str, Any]:
    (change,) = set_changes(graph or workflow(), [text])
    assert change.why == "--set"
    return change.node_id, change.input, change.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6.inputs.text=a fox", ("6", "text", "a fox")),
        ("6.text=a fox", ("6", "text", "a fox")),
        ("Positive.text=a fox", ("6", "text", "a fox")),
        ("positive.inputs.text=a fox", ("6", "text", "a fox")),
        ("v1.5 a=b Negative.text=a.b=c", ("7", "text", "a.b=c")),
        ("57:8.seed=7", ("57:8", "seed", 7)),
        ("KSampler.seed=7", ("57:8", "seed", 7)),
        ("10.mode.width=64", ("10", "mode.width", 64)),
        ("10.inputs.mode.width=64", ("10", "mode.width", 64)),
        ("10.inputs.odd=2", ("10", "inputs.odd", 2)),
        (" 6 . text=x", None),
        ("6.text =x", ("6", "text", "x")),
    ],
)
def test_ways_to_name_an_input(text: str, expected: Any) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            value_of(text)
    else:
        assert value_of(text) == expected


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("6.text=5", "5"),
        ('6.text="quoted"', '"quoted"'),
        ("6.text=", ""),
        ("6.text= a\nb ", " a\nb "),
        ("57:8.sampler_name=heun", "heun"),
        ("57:8.seed=18446744073709551615", 18446744073709551615),
        ("57:8.steps=30.0", 30),
        ("57:8.cfg=6.5", 6.5),
        ("57:8.denoise=1", 1),
        ("57:8.denoise=1e-1", 0.1),
        ("57:8.add=false", False),
        ("8.names=[]", []),
        ('8.names=["x", "y", "z"]', ["x", "y", "z"]),
        ("8.points=[2, 3]", {"__value__": [2, 3]}),
        ('8.box={"x": 2}', {"x": 2}),
        ('8.none="text"', "text"),
        ("8.none=null", None),
    ],
)
def test_values_keep_their_type(text: str, value: Any) -> None:
    found = value_of(text)[2]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("57:8.steps=many", "must be a number; it is 20 now"),
        ("57:8.steps=", "must be a number"),
        ('57:8.steps="20"', "must be a number"),
        ("57:8.steps=true", "must be a number"),
        ("57:8.steps=7.5", "must be a whole number"),
        ("57:8.cfg=NaN", "must be a number"),
        ("57:8.cfg=Infinity", "must be a number"),
        ("57:8.cfg=1e999", "must be a number"),
        ("57:8.add=1", "must be true or false; it is true now"),
        ("57:8.add=True", "must be true or false"),
        ("8.names=a", "must be a JSON list"),
        ('8.names=["6", 0]', "not a link"),
        ("8.names=[NaN]", "must be a JSON list"),
        ("8.names=[1e999]", "must be a JSON list"),
        ('8.points=["6", 0]', "not a link"),
        ("8.box=[1]", "must be a JSON object"),
        ("8.none=text", "in double quotes"),
        ("57:8.cfg=" + "[" * 100_000, "must be a number"),
        ("57:8.cfg=" + "9" * 10_000, "must be a number"),
    ],
)
def test_a_value_of_another_type(text: str, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted) as caught:
        value_of(text)
    assert caught.value.message.startswith(f"--set {text[:20]}"[:26])
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "--set nonsense: write NODE.INPUT=VALUE"),
        ("seed=5", r"(?s)which node\?.*57:8 KSampler"),
        ("=5", r"which node\?"),
        (
            "6.tekst=x",
            r"--set 6\.tekst: node 6 CLIPTextEncode \"Positive\" has no input 'tekst'; did you mean 'text'\?",
        ),
        ("6.inputs.zzz=x", "has no input 'zzz'; it has clip, text"),
        ("6.=x", "has no input ''"),
        ("Positiv.text=x", r"(?s)no node 'Positiv'; did you mean\n  6 CLIPTextEncode"),
        ("8888.text=x", "no node '8888'"),
        ("66.inputs.text=x", "no node '66'"),
        ("zzz qqq.inputs.a=x", "no node 'zzz qqq': give a node's id or its title"),
    ],
)
def test_what_is_not_there(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        value_of(text)


def test_the_inputs_of_a_choice_differ_behind_their_dot() -> None:
    inputs = {"model": "a", "model.resolution": "1K", "model.seed": 1}
    with pytest.raises(UsageError, match=r"no input 'model\.sed'; did you mean 'model\.seed' or"):
        value_of("1.model.sed=5", {"1": node("ApiNode", **inputs)})


def test_a_node_without_inputs() -> None:
    with pytest.raises(UsageError, match=r"has no input 'a'$"):
        value_of("1.a=5", {"1": node("Empty")})


def test_several_are_set_in_their_order() -> None:
    changes = set_changes(workflow(), ["6.text=a", "57:8.seed=2", "6.text=b"])
    assert [(c.node_id, c.value) for c in changes] == [("6", "a"), ("57:8", 2), ("6", "b")]


# --- linked inputs ---------------------------------------------------------------------------------------


def linked(*others: dict[str, Any]) -> dict[str, Any]:
    return {
        "1": node("CLIPTextEncode", text=["2", 0], clip=["9", 1]),
        "2": node("Reroute", **{"": ["3", 0]}),
        "3": node("PrimitiveStringMultiline", "The prompt", value="a cat"),
        **{str(at): other for at, other in enumerate(others, start=20)},
    }


def test_a_linked_input_is_set_where_it_comes_from() -> None:
    assert value_of("1.text=a fox", linked()) == ("3", "value", "a fox")


def test_the_type_is_that_of_the_primitive() -> None:
    graph = {"1": node("KSampler", steps=["2", 0]), "2": node("INTConstant", value=20)}
    assert value_of("1.steps=30", graph) == ("2", "value", 30)
    with pytest.raises(UsageError, match=r"--set 1\.steps=x: must be a number"):
        value_of("1.steps=x", graph)


def test_a_primitive_that_feeds_others_is_not_changed_for_one() -> None:
    graph = linked(node("CLIPTextEncode", text=["3", 0]))
    with pytest.raises(UsageError, match=r"node 3 .*feeds 20\.text too.*--set 3\.inputs\.value=…"):
        value_of("1.text=a fox", graph)
    assert value_of("3.value=a fox", graph) == ("3", "value", "a fox")


@pytest.mark.parametrize(
    "source",
    [
        node("CheckpointLoaderSimple", ckpt_name="x"),
        node("LoadImage", image="x.png"),
        node("StringConcatenate", string_a="a", string_b="b", delimiter=""),
        node("StringLength", string="abc"),
        node("StringTrim", string="abc", mode="Both"),
        node("ShowText|pysssh", text="abc"),
        node("CLIPTextEncode", text="abc", clip=["9", 0]),
        node("RandomNoise", noise_seed=5),
        node("Two", value=1, number=2),
    ],
    ids=lambda source: source["class_type"],
)
def test_what_a_node_computes_is_not_set(source: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--set 1\.x=5: 'x' of node 1 Any is not a value but a link from node 2 "):
        value_of("1.x=5", {"1": node("Any", x=["2", 0]), "2": source})


@pytest.mark.parametrize(
    "source",
    [
        node("PrimitiveInt", value=1),
        node("easy int", value=1),
        node("Int Literal (Image Saver)", int=1),
        node("Seed (rgthree)", seed=1),
        node("Text Multiline", text="a"),
        node("CR Text", text="a"),
        node("StringConstantMultiline", string="a", strip_newlines=True),
        node("PrimitiveBoolean", value=True),
    ],
    ids=lambda source: source["class_type"],
)
def test_what_a_node_only_holds_is_set(source: dict[str, Any]) -> None:
    present = next(iter(source["inputs"].values()))
    change = value_of(f"1.x={'false' if present is True else 5}", {"1": node("Any", x=["2", 0]), "2": source})
    assert change[0] == "2"


def test_links_in_a_loop_or_to_nowhere_end() -> None:
    graph = {"1": node("Reroute", a=["2", 0]), "2": node("Reroute", a=["1", 0]), "3": node("Any", x=["gone", 0])}
    for text in ("1.a=5", "3.x=5"):
        with pytest.raises(UsageError, match="a link from node"):
            value_of(text, graph)


# --- nodes by name ---------------------------------------------------------------------------------------


def test_an_id_counts_before_a_title() -> None:
    graph = workflow() | {"11": node("Note", "6")}
    assert node_of(graph, "6") == "6"


def test_an_exact_title_counts_before_one_in_another_case() -> None:
    assert (node_of(workflow(), "Twin"), node_of(workflow(), "twin")) == ("8", "9")
    with pytest.raises(Ambiguous, match=r"(?s)'TWIN' names 2 nodes.*8 Lists.*9 VAEDecode"):
        node_of(workflow(), "TWIN")


def test_a_title_counts_before_a_class() -> None:
    graph = {"1": node("KSampler"), "2": node("Other", "ksampler")}
    assert node_of(graph, "KSampler") == "2"


def test_several_of_a_title_in_set() -> None:
    with pytest.raises(Ambiguous, match=r"(?s)--set TWIN\.none: 'TWIN' names 2 nodes"):
        value_of("TWIN.none=5")


def test_an_id_inside_a_subgraph_is_found_by_its_end() -> None:
    with pytest.raises(UsageError, match=r"did you mean\n  57:8 KSampler"):
        node_of({"57:8": node("KSampler")}, "8")


def test_an_empty_name_is_none() -> None:
    with pytest.raises(UsageError):
        node_of({"1": node("KSampler")}, "")


# --- what runs -------------------------------------------------------------------------------------------


def test_what_an_output_is_made_from_is_live() -> None:
    graph = {
        "1": node("LoadImage", image="a"),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("PreviewImage", images=["2", 0]),
        "4": node("ImageInvert", image=["2", 0]),
        "5": node("Api", image=["1", 0]),
        "6": node("Reroute", a=["gone", 0]),
        "7": node("Api", a=["gone", 0]),
    }
    info = {"LoadImage": {}, "ImageInvert": {"output_node": False}, "PreviewImage": {"output_node": True}}
    assert LiveGraph(graph, NodeRegistry(info)).live.keys() == {"1", "2", "3", "5", "7"}
    assert LiveGraph(graph).live.keys() == graph.keys() - {"6"}
    del graph["3"], graph["5"], graph["6"], graph["7"]
    assert LiveGraph(graph, NodeRegistry(info)).live == graph


# --- the published workflows -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(REAL.glob("*.api.json")), ids=lambda path: path.name.removesuffix(".api.json"))
def test_every_literal_of_published_workflows_can_be_set(path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    for node_id, found in graph.items():
        for name, value in found["inputs"].items():
            if isinstance(value, (str, int, float)):
                text = value if isinstance(value, str) else json.dumps(value)
                assert value_of(f"{node_id}.inputs.{name}={text}", graph) == (node_id, name, value)


# --- any text --------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    left=st.one_of(st.text("6.:57=8ad ", max_size=12), st.sampled_from(["6.text", "57:8.cfg", "8.box", "8.none"])),
    value=st.one_of(st.text(max_size=20), st.text('[]{}",0e-+.truefalsn', max_size=12)),
)
def test_any_text_is_a_change_or_a_usage_error(left: str, value: str) -> None:
    graph = workflow()
    with contextlib.suppress(UsageError):
        (change,) = set_changes(graph, [f"{left}={value}"])
        present = graph[change.node_id]["inputs"][change.input]
        assert isinstance(change.value, str) == isinstance(present, str) or present is None
        json.dumps(change.value, allow_nan=False)
