"""The dispatch envelope: what is taken, and that everything else is told in the caller's own names."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settee.base.errors import InvalidRequest
from settee.doors.agent import envelope
from settee.doors.agent.contract import example
from tests.unit.agent.templates import TEMPLATE, dispatched, loras, parsed

EXAMPLE: dict[str, Any] = example("envelope")

SHA = "0123456789abcdef" * 4


def problems_of(data: object) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        envelope.parse(data)
    return {problem["path"]: problem["problem"] for problem in caught.value.details["problems"]}


def test_the_documented_envelope_is_taken_as_it_stands() -> None:
    parsed = envelope.parse(json.loads(json.dumps(EXAMPLE)))
    assert parsed.job_id == "c7c4b87a-6c9e-4a53-9301-7a1d5f6d32b2"
    assert parsed.workflow.minio_key == "generator-workflows/default.json"
    assert parsed.workflow_bucket == "comfyui-models"
    assert parsed.base_model.cache_strategy == "persistent"
    assert parsed.parameters.sampler is None
    assert parsed.parameters.extra["sampler"] == "dpmpp_2m_sde_gpu"
    assert len(parsed.workflow_parameters) == 21
    assert parsed.workflow_parameters[0].node == "1"
    assert parsed.callbacks.status is not None


def test_what_is_shown_is_what_was_given_without_the_token() -> None:
    data = dispatched(cancelToken="hush", workflowOverrides=[{"node": "1", "path": "inputs.x", "value": None}])
    shown = envelope.parse(data).shown()
    del data["cancelToken"]
    for binding in data["workflowParameters"]:
        binding["node"] = str(binding["node"])
    assert shown == data
    assert "hush" not in repr(envelope.parse(dispatched(cancelToken="hush")))


def test_unknown_keys_are_ignored() -> None:
    data = dispatched(future=1, parameters__future=2)
    data["loras"][0]["future"] = 3
    assert envelope.parse(data) == envelope.parse(EXAMPLE)


def test_a_key_that_looks_misspelt_is_a_warning() -> None:
    assert parsed().warnings == ()
    data = dispatched(future=1, cancel_token="hush", parameters__negativePropmt="dull")
    del data["parameters"]["negativePrompt"]
    data["loras"][0].pop("checksum", None)
    data["loras"][0]["chekcsum"] = SHA
    assert set(envelope.parse(data).warnings) == {
        "cancel_token: this key is ignored; did you mean 'cancelToken'?",
        "parameters.negativePropmt: this key is ignored; did you mean 'negativePrompt'?",
        "loras[0].chekcsum: this key is ignored; did you mean 'checksum'?",
    }


def test_nulls_and_empty_texts_are_as_good_as_nothing() -> None:
    data = dispatched(loras=None, workflowOverrides=None, workflowParameters=None, callbacks=None, cancelToken="")
    data["parameters"] |= {"extra": None, "seed": None, "negativePrompt": None, "resolution": None}
    data["workflow"] |= {"localPath": "", "inline": None, "bucket": ""}
    data["baseModel"] |= {"checksum": "", "displayName": "", "originalName": None}
    taken = envelope.parse(data)
    assert taken.loras == ()
    assert taken.cancel_token is None
    assert taken.parameters.extra == {}
    assert taken.workflow.local_path is None
    assert taken.base_model.checksum is None


@pytest.mark.parametrize("checksum", [SHA, f"sha256:{SHA}", f"SHA256:{SHA.upper()}"])
def test_a_checksum_is_64_hex_digits_however_written(checksum: str) -> None:
    assert parsed(baseModel__checksum=checksum).base_model.checksum == SHA


@pytest.mark.parametrize(
    ("path", "value", "at", "says"),
    [
        ("jobId", ..., "jobId", "is missing"),
        ("jobId", "", "jobId", "at least 1 character"),
        ("jobId", 7, "jobId", "should be a string"),
        ("jobId", "a\nb", "jobId", "cannot be printed"),
        ("jobId", "a\x00", "jobId", "cannot be printed"),
        ("jobId", "x" * 201, "jobId", "at most 200"),
        ("user", ..., "user", "is missing"),
        ("user__username", None, "user.username", "should be a string"),
        ("output__bucket", "a/b", "output.bucket", "not a bucket's name"),
        ("output__prefix", "../up", "output.prefix", '".."'),
        ("output__prefix", ..., "output.prefix", "is missing"),
        ("workflow__minioKey", ..., "workflow", "names no workflow"),
        ("workflow__minioKey", "folder/", "workflow.minioKey", "names a folder"),
        ("workflow__inline", [], "workflow.inline", "should be an object"),
        ("workflow__inline", {}, "workflow.inline", "no nodes"),
        ("workflow__inline", {"1": {"inputs": {}}}, "workflow.inline.1", "no class_type"),
        ("workflow__version", [1], "workflow.version", "string or a number"),
        ("workflow__localPath", "a\x00b", "workflow.localPath", "cannot be printed"),
        ("baseModel__key", "", "baseModel.key", "names no object"),
        ("baseModel__key", "a\x1fb", "baseModel.key", "cannot be printed"),
        ("baseModel__key", "k" * 1025, "baseModel.key", "1024 bytes"),
        ("baseModel__cacheStrategy", "forever", "baseModel.cacheStrategy", "'ephemeral' or 'persistent'"),
        ("baseModel__checksum", "md5:abc", "baseModel.checksum", "64 hex digits"),
        ("loras", {}, "loras", "should be a list"),
        ("loras", [5], "loras[0]", "should be an object"),
        ("loras", loras(101), "loras", "should have at most 100 items, not 101"),
        ("loras", loras(2) + loras(1), "loras[2]", "same object"),
        ("loras", [{"bucket": "b"}], "loras[0].key", "is missing"),
        ("parameters__prompt", ..., "parameters.prompt", "is missing"),
        ("parameters__prompt", 3, "parameters.prompt", "should be a string"),
        ("parameters__seed", -1, "parameters.seed", "must be a whole number from 0 to 18446744073709551615"),
        ("parameters__seed", 2**64, "parameters.seed", "64 bits"),
        ("parameters__seed", "7", "parameters.seed", "must be a number"),
        ("parameters__seed", 1.5, "parameters.seed", "must be a whole number from 0 to 18446744073709551615"),
        ("parameters__seed", 1e20, "parameters.seed", "must be a whole number from 0 to 18446744073709551615"),
        ("parameters__seed", 1e300, "parameters.seed", "must be a whole number from 0 to"),
        ("parameters__steps", True, "parameters.steps", "must be a number"),
        ("parameters__steps", 0, "parameters.steps", "must be a whole number from 1 to 10000"),
        ("parameters__cfgScale", 0, "parameters.cfgScale", "should be greater than 0"),
        ("parameters__cfgScale", "7", "parameters.cfgScale", "must be a number"),
        ("parameters__cfgScale", float("nan"), "parameters.cfgScale", "finite"),
        ("parameters__cfgScale", float("inf"), "parameters.cfgScale", "finite"),
        ("parameters__resolution", {"width": 8}, "parameters.resolution.height", "is missing"),
        ("parameters__resolution__width", 20_000, "parameters.resolution.width", "16384"),
        ("parameters__extra", [], "parameters.extra", "object"),
        ("parameters__extra", {"a": [{"b": float("nan")}]}, "parameters.extra.a[0].b", "finite"),
        ("parameters__extra", {"big": 2**70}, "parameters.extra.big", "64 bits"),
        ("parameters__prompt", "half \ud800", "parameters.prompt", "surrogate"),
        ("parameters__extra", {"\udfff": 1}, "parameters.extra", "key"),
        ("workflowOverrides", [{"node": 1, "path": "inputs.a"}], "workflowOverrides[0].value", "is missing"),
        ("workflowOverrides", [{"node": 1.5, "path": "a", "value": 1}], "workflowOverrides[0].node", "node's id"),
        ("workflowParameters", [{"node": True, "path": "a", "parameter": "p"}], "workflowParameters[0].node", "id"),
        ("workflowParameters", [{"node": 1, "path": "", "parameter": "p"}], "workflowParameters[0].path", "at least"),
        ("callbacks__status", "ftp://host/x", "callbacks.status", "http(s)"),
        ("callbacks__status", "javascript:alert(1)", "callbacks.status", "http(s)"),
        ("callbacks__status", "//host/x", "callbacks.status", "not an http(s) address"),
        ("callbacks__failure", "http://", "callbacks.failure", "http(s)"),
        ("callbacks__failure", 5, "callbacks.failure", "should be a string"),
        ("cancelToken", 5, "cancelToken", "should be a string"),
        ("priority", {}, "priority", "string or a number"),
    ],
)
def test_what_is_wrong_is_told_where_it_is(path: str, value: Any, at: str, says: str) -> None:
    problems = problems_of(dispatched(**{path: value}))
    assert list(problems) == [at]
    assert says in problems[at]
    for pythons in ("Input", "String", "Tuple", "tuple", "dictionary", "validation", "instance"):
        assert pythons not in problems[at]


@pytest.mark.parametrize("data", [None, [], "text", 5, True])
def test_only_an_object_is_an_envelope(data: object) -> None:
    assert "must be a JSON object, not " in problems_of(data)[""]


def test_what_is_no_object_is_named_in_jsons_words() -> None:
    assert problems_of([])[""].endswith("not a list")
    assert problems_of(True)[""].endswith("not true or false")


def test_a_whole_number_may_be_written_as_json_likes() -> None:
    taken = parsed(parameters__seed=1e19, parameters__steps=20.0).parameters
    assert (taken.seed, taken.steps) == (10**19, 20)
    assert type(taken.seed) is type(taken.steps) is int


def test_all_problems_come_at_once() -> None:
    data = dispatched(jobId="", user=..., parameters__steps="20", loras=[{}], workflow__minioKey=...)
    assert set(problems_of(data)) == {
        "jobId",
        "user",
        "parameters.steps",
        "loras[0].bucket",
        "loras[0].key",
        "workflow",
    }


def test_thousands_of_problems_are_told_in_a_hundred() -> None:
    with pytest.raises(InvalidRequest) as caught:
        envelope.parse(dispatched(workflowParameters=[{}] * 5000))
    problems = caught.value.details["problems"]
    assert len(problems) == 100
    assert problems[-1]["problem"] == "and 14901 more"


def test_a_document_deeper_than_pythons_stack_is_told_so() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    [(path, problem)] = problems_of(dispatched(parameters__extra={"deep": deep})).items()
    assert path.startswith("parameters.extra.deep[0][0]")
    assert "nested more than" in problem


@pytest.mark.parametrize("url", ["https://a.example/x?y=1", "HTTP://127.0.0.1:9/x", "/api/status", "api/status:1"])
def test_callbacks_may_be_absolute_or_relative(url: str) -> None:
    assert parsed(callbacks__status=url).callbacks.status == url


@pytest.mark.parametrize("text", ["名無し　さん", "مهر\u200cبان", "👩\u200d🚀", "../../etc/passwd", "Zoë"])
def test_ids_may_be_any_text_that_can_be_printed(text: str) -> None:
    assert parsed(jobId=text, user__id=text).user.id == text


def test_an_inline_workflow_is_looked_at_before_the_job_is_taken() -> None:
    assert parsed(workflow__inline=TEMPLATE).workflow.inline == TEMPLATE
    with pytest.raises(InvalidRequest, match="8 nodes; MAX_NODES allows 7"):
        envelope.parse(dispatched(workflow__inline=TEMPLATE), max_nodes=7)


def test_the_example_is_the_documentations() -> None:
    """It goes to the OpenAPI page."""
    schema = envelope.Envelope.model_json_schema()
    assert schema["examples"] == [EXAMPLE]
    assert {"jobId", "user", "output", "workflow", "baseModel", "parameters"} == set(schema["required"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300)
@given(JSON, st.data())
def test_whatever_stands_anywhere_is_taken_or_told(value: Any, data: st.DataObject) -> None:
    """A taken envelope can be written as UTF-8 JSON; a refused one says where."""
    places = [key if not isinstance(EXAMPLE[key], dict) else f"{key}__{inner}" for key in EXAMPLE for inner in _in(key)]
    changes = {data.draw(st.sampled_from(places)): value}
    try:
        taken = envelope.parse(dispatched(**changes))
    except InvalidRequest as error:
        for problem in error.details["problems"]:
            assert problem["problem"]
            json.dumps(problem, ensure_ascii=False).encode()
    else:
        json.dumps(taken.shown(), ensure_ascii=False, allow_nan=False).encode()


def _in(key: str) -> list[str]:
    return list(EXAMPLE[key]) if isinstance(EXAMPLE[key], dict) else [""]
