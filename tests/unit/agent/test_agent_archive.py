"""What is kept of a job, and what is not."""

from __future__ import annotations

import json
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.doors.agent.archive import Archive
from settee.service.scrub import GONE, is_secret_name, secret_values, without_secrets
from tests.unit.agent.templates import parsed

NOW = datetime(2026, 5, 4, 3, 2, 1, 123000, tzinfo=timezone.utc)
ENVELOPE = {
    "jobId": "job-1",
    "cancelToken": "cancel-me-please",
    "workflow": {"id": "w", "minioKey": "generator-workflows/default.json"},
    "baseModel": {"bucket": "models", "key": "a.safetensors", "checksum": "ab"},
    "parameters": {"prompt": "肖像\nof a token", "extra": {"hf_token": "hf_abc", "max_tokens": 77, "apiKey": "k-123"}},
    "callbacks": {
        "status": "https://me:pw@control.example/cb/status?sig=abc#f",
        "failure": "/cb/failure?token=abc",
    },
}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def everything(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file())


class TestArchive:
    def test_what_is_kept(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path, "job-1", now=lambda: NOW)
        graph = {"3": {"class_type": "KSampler", "inputs": {"seed": 2**64 - 1, "model": ["1", 0]}}}
        archive.prepared(ENVELOPE, {"seed": 7, "prompt": "肖像"}, graph)
        archive.event("accepted", {})
        archive.event("uploaded", {"key": "p/01_7.png", "url": "https://s3/p?X-Amz-Signature=abc&a=b"})
        folder = tmp_path / "logs" / "job-1"
        assert sorted(path.name for path in folder.iterdir()) == [
            "applied-workflow.json",
            "events.jsonl",
            "manifest-20260504T030201.123Z.json",
        ]
        manifest = read(folder / "manifest-20260504T030201.123Z.json")
        assert set(manifest) == {"envelope", "resolvedParameters", "workflow"}
        assert manifest["workflow"] == graph == read(folder / "applied-workflow.json")
        assert manifest["envelope"]["workflow"] == ENVELOPE["workflow"]
        assert manifest["envelope"]["baseModel"] == ENVELOPE["baseModel"]
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().split("\n")[:-1]]
        assert events[0] == {"timestamp": "2026-05-04T03:02:01.123Z", "event": "accepted", "details": {}}
        assert events[1]["details"] == {"key": "p/01_7.png", "url": f"https://s3/p?X-Amz-Signature={GONE}&a=b"}

    def test_no_secret_in_any_of_them(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path, "job-1", secrets=["cancel-me-please", "minio-secret"])
        graph = {"1": {"inputs": {"text": "cancel-me-please", "api_key": "k-123"}}}
        archive.prepared(ENVELOPE, {"note": "signed with minio-secret"}, graph)
        archive.event("canceled", {"why": "cancel-me-please was given", "callbacks": ENVELOPE["callbacks"]})
        text = everything(tmp_path)
        for secret in ("cancel-me-please", "minio-secret", "hf_abc", "k-123", "me:pw", "sig=abc", "token=abc"):
            assert secret not in text
        for kept in ("肖像\\nof a token", f"https://control.example/{GONE}", "77"):
            assert kept in text

    def test_no_secret_of_an_envelope_wherever_it_is_written(self, tmp_path: Path) -> None:
        shown = parsed(
            parameters__extra={
                "hf_token": "hf_a",
                "style": "bound-to-a-password",
                "sampler": "euler",
                "scheduler": "x",
            },
            workflowOverrides=[
                {"node": 1, "path": "inputs.api_key", "value": "sk-1"},
                {"node": 2, "path": "inputs.api_keys.0", "value": {"deep": [7, "sk-2-long"]}},
                {"node": 3, "path": "inputs.text", "value": "a cat"},
                {"node": 3, "path": "inputs.token", "value": ["4", 0]},
            ],
            workflowParameters=[
                {"parameter": "hf_token", "node": 1, "path": "inputs.value"},
                {"parameter": "style", "node": 2, "path": "inputs.password"},
            ],
            callbacks__status="https://hooks.example/services/T0/B0/in-the-path",
        ).shown()
        graph = {
            "1": {"class_type": "A", "inputs": {"value": "hf_a", "header": "Bearer sk-2-long", "list": ["sk-1"]}},
            "2": {"class_type": "B", "inputs": {"text": "a cat", "model": ["4", 0]}},
        }
        archive = Archive(tmp_path, "job-1", secrets=secret_values(shown))
        archive.prepared(shown, {"hf_token": "hf_a", "style": "bound-to-a-password", "seed": 1}, graph)
        archive.event("failed", {"reason": "node 1 said: sk-2-long is not valid"})
        text = everything(tmp_path)
        for secret in ("hf_a", "bound-to-a-password", "sk-1", "sk-2-long", "in-the-path", "/T0"):
            assert secret not in text
        applied = read(tmp_path / "logs" / "job-1" / "applied-workflow.json")
        assert applied["1"]["inputs"] == {"value": GONE, "header": f"Bearer {GONE}", "list": [GONE]}
        assert applied["2"] == graph["2"]
        assert "https://hooks.example/" in text

    def test_the_same_job_again_adds_to_it(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path, "job-1")
        archive.event("one", {})
        events = tmp_path / "logs" / "job-1" / "events.jsonl"
        with events.open("ab") as file:
            file.write(b'{"timestamp": "20')  # as a kill leaves it
        archive = Archive(tmp_path, "job-1")
        archive.event("two", {})
        first, broken, second = events.read_text().splitlines()
        assert (json.loads(first)["event"], json.loads(second)["event"]) == ("one", "two")
        assert broken == '{"timestamp": "20'

    def test_one_line_for_an_event_whatever_is_in_it(self, tmp_path: Path) -> None:
        text = "a\nb\r\u2028c\u2029d\x85e\ud800f肖像"
        archive = Archive(tmp_path, "job-1")
        archive.event("said", {"text": text, text: float("nan")})
        content = (tmp_path / "logs" / "job-1" / "events.jsonl").read_text(encoding="utf-8")
        assert len(content.splitlines()) == 1
        assert "肖像" in content
        assert json.loads(content)["details"] == {"text": text, text: None}

    def test_events_of_many_threads(self, tmp_path: Path) -> None:
        archive = Archive(tmp_path, "job-1")
        threads = [
            threading.Thread(target=lambda n=n: [archive.event("e", {"n": n, "x": "y" * 5000}) for _ in range(50)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lines = (tmp_path / "logs" / "job-1" / "events.jsonl").read_text().splitlines()
        assert sorted(json.loads(line)["details"]["n"] for line in lines) == sorted([0, 1, 2, 3] * 50)

    def test_a_disk_that_does_not_take_part_costs_no_job(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "logs").write_text("a file where the folder should be")
        archive = Archive(tmp_path, "job-1")
        archive.prepared(ENVELOPE, {}, {})
        archive.event("accepted", {})
        assert "job-1" in caplog.text

    def test_links_are_not_followed(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.write_text("mine")
        folder = tmp_path / "logs" / "job-1"
        folder.mkdir(parents=True)
        for name in ("events.jsonl", "applied-workflow.json", ".applied-workflow.json.part"):
            (folder / name).symlink_to(outside)
        archive = Archive(tmp_path, "job-1")
        archive.event("accepted", {})
        archive.prepared({}, {}, {})
        assert outside.read_text() == "mine"

    def test_nothing_is_touched_before(self, tmp_path: Path) -> None:
        Archive(tmp_path, "job-1")
        assert not list(tmp_path.iterdir())


class TestFolder:
    @pytest.mark.parametrize("job_id", ["c7c4b87a-6c9e-4a53-9301-7a1d5f6d32b2", "a", "-rf", "A_1.b", "肖像"])
    def test_plain_ids_stay(self, job_id: str, tmp_path: Path) -> None:
        assert Archive(tmp_path, job_id).folder == tmp_path / "logs" / job_id

    @pytest.mark.parametrize(
        "job_id", ["", ".", "..", "../../etc", "/etc/passwd", "a/b", "a\\b", "a\0b", "a" * 101, "a\n", "\ud800"]
    )
    def test_others_cannot_lead_anywhere(self, job_id: str, tmp_path: Path) -> None:
        archive = Archive(tmp_path / "outputs", job_id)
        archive.event("accepted", {})
        [events] = tmp_path.rglob("events.jsonl")
        assert events.parent.parent == tmp_path / "outputs" / "logs"
        assert events.parent.name != job_id
        assert Archive(tmp_path / "outputs", events.parent.name).folder != events.parent  # no other job's id


class TestSecrets:
    @pytest.mark.parametrize(
        "name",
        [
            "cancelToken",
            "token",
            "tokens",
            "hf_token",
            "HF_TOKEN",
            "HFToken",
            "access-token",
            "hf_token_",
            "token.",
            "secret",
            "clientSecret",
            "secret_key",
            "password",
            "PASSWORD",
            "api_key",
            "apiKey",
            "APIKEY",
            "x-api-key",
            "access_key",
            "accessKeyId",
            "Authorization",
            "cookie",
            "X-Amz-Signature",
            "aws_secret_access_key",
            "credentials",
            "privateKey",
        ],
    )
    def test_names_that_say_so(self, name: str) -> None:
        assert is_secret_name(name)

    @pytest.mark.parametrize(
        "name",
        [
            "minioKey",
            "key",
            "keys",
            "s3_key",
            "persistent_model_keys",
            "object_key",
            "tokenizer",
            "token_count",
            "prompt",
            "keyframe",
            "monkey",
            "seed",
            "author",
            "",
            "图",
            "passes",
            "design",
        ],
    )
    def test_names_that_do_not(self, name: str) -> None:
        assert not is_secret_name(name)

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ({"token": 3, "password": None, "secret": "", "auth_key": True}, None),
            ({"tokens": ["4", 0]}, None),  # an input of a node, linked to another's output
            ({"tokens": ["abc", "def"]}, {"tokens": GONE}),
            ({"secret": {"a": "b"}}, {"secret": GONE}),
            ("see https://me:pw@host/a?b=c", f"see https://{GONE}@host/a?b=c"),
            ("https://h/?a=1&access_token=abc&b=2#x", f"https://h/?a=1&access_token={GONE}&b=2#x"),
            ("postgres://u:p@h/db", f"postgres://{GONE}@h/db"),
            ("mail me@host, not://", None),
            ("a key=value and sig=1", None),
            (1.5, None),
            (float("inf"), "null"),
        ],
    )
    def test_values(self, given: Any, kept: Any) -> None:
        expected = given if kept is None else None if kept == "null" else kept
        assert without_secrets(given) == expected

    @pytest.mark.parametrize(
        ("address", "kept"),
        [
            ("https://hooks.example/services/T0/B0/x", f"https://hooks.example/{GONE}"),
            ("https://me:pw@control.example:8443/cb?sig=abc#f", f"https://control.example:8443/{GONE}"),
            ("http://[::1]:80/cb", f"http://[::1]:80/{GONE}"),
            ("HTTPS://Control.Example", "HTTPS://Control.Example"),
            ("https://control.example/", "https://control.example/"),
            ("https://control.example?token=abc", f"https://control.example/{GONE}"),
            ("https://me:p/w@control.example/x", f"https://me/{GONE}"),
            ("https:///x", GONE),
            ("/cb/failure", GONE),
            ("cb:secret", GONE),
            ("", ""),
            (None, None),
        ],
    )
    def test_of_a_callback_scheme_and_host_are_kept(self, address: str | None, kept: str | None) -> None:
        assert without_secrets({"callbacks": {"status": address}}) == {"callbacks": {"status": kept}}

    def test_a_short_secret_goes_where_it_is_the_whole_text(self) -> None:
        given = {"a": "tea", "b": ["tea", "tea time"], "tea": 1}
        assert without_secrets(given, ["tea", ""]) == {"a": GONE, "b": [GONE, "tea time"], "tea": 1}

    @pytest.mark.parametrize(
        ("extra", "found"),
        [
            ({"hf_token": "t", "auth": {"password": {"a": ["p", ["q"]]}}}, {"t", "p", "q"}),
            ({"tokens": 77, "api_key": "", "secret": None, "key": "k", "token_links": ["4", 0]}, set()),
            ({"tokens": ["4", 0]}, set()),
        ],
    )
    def test_secret_values_are_the_texts_under_names_that_say_so(self, extra: dict[str, Any], found: set[str]) -> None:
        assert secret_values(parsed(parameters__extra=extra).shown()) == found

    def test_known_secrets_in_any_text_and_name(self) -> None:
        value = {"abcdef-1": ["x abcdef-1-long y", ("abcdef-1",)]}
        assert without_secrets(value, ["abcdef-1", "abcdef-1-long", "x"]) == {GONE: [f"x {GONE} y", [GONE]]}

    def test_what_is_given_stays_as_it_is(self) -> None:
        given = json.loads(json.dumps(ENVELOPE))
        without_secrets(given, ["肖像-secret"])
        assert given == ENVELOPE

    @given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=20))
    def test_json_holds_it(self, value: Any) -> None:
        json.dumps(without_secrets(value), allow_nan=False)

    def test_it_does_not_go_down_without_end(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        json.dumps(without_secrets(endless))
