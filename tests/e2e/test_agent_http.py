"""The agent's HTTP door: tokens, limits, browsers, following a job, what it tells of itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests

from settee.doors.agent.contract import CompletionCallback, FailureCallback, Job, StatusCallback, example
from tests.support.agent import Agent, HeldStore, comfy, held_in, parameters
from tests.support.embedded import EmbeddedServer
from tests.support.receiver import Receiver
from tests.support.waiting import eventually

EXAMPLE: dict[str, Any] = example("envelope")

TOKEN = "a-token-of-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
MOST = 200_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with comfy(tmp_path_factory.mktemp("comfy"), faults={"step_slow": 0.01}) as server:
        yield server


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, store: HeldStore, server: EmbeddedServer) -> Iterator[Agent]:
    """With a token, on loopback."""
    limits = {"max_body_bytes": MOST, "host": "127.0.0.1"}
    root = tmp_path_factory.mktemp("agent")
    with Agent(root, store, server, auth={"tokens": [TOKEN]}, server=limits) as agent:
        agent.session.headers.update(BEARER)
        yield agent
        assert TOKEN not in agent.log_path.read_text()
        assert "Traceback" not in agent.log_path.read_text()


@pytest.fixture(scope="module")
def open_agent(tmp_path_factory: pytest.TempPathFactory, store: HeldStore, server: EmbeddedServer) -> Iterator[Agent]:
    """Without a token."""
    with Agent(tmp_path_factory.mktemp("open"), store, server) as agent:
        yield agent


# --- who may come in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer ü"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/jobs"), ("POST", "/jobs/cancel"), ("GET", "/jobs/x"), ("GET", "/jobs/x/events"), ("GET", "/metrics"),
     ("GET", "/docs"), ("GET", "/docs/swagger-ui.css"),
     ("GET", "/openapi.json"), ("GET", "/nowhere"), ("GET", "//healthz"), ("GET", "/healthz/")],
)  # fmt: skip
def test_a_token_is_needed(method: str, path: str, header: str | None, agent: Agent) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = requests.request(method, agent.url + path, headers=headers, json={}, timeout=5)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("path", ["/", "/healthz"])
def test_health_is_open(path: str, agent: Agent) -> None:
    answer = requests.get(agent.url + path, headers={"Host": "anybody.example"}, timeout=5)
    assert (answer.status_code, answer.json()["status"], answer.json()["busy"]) == (200, "ok", False)
    assert set(answer.json()) <= {"status", "service", "busy"}


def test_a_page_in_a_browser_gets_nowhere(open_agent: Agent, store: HeldStore) -> None:
    """Neither by a form, whose content types need no leave, nor by a name that was made to lead here."""
    body = json.dumps(store.envelope(jobId="a form"))
    url = f"{open_agent.url}/jobs"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert requests.post(url, data=body, headers={"Content-Type": kind}, timeout=5).status_code == 415
    assert requests.post(url, data=body.encode(), timeout=5).status_code == 415
    for host in ("evil.example", "evil.example:8081", "127.0.0.1.evil.example", "[", ""):
        answer = requests.post(url, json={}, headers={"Host": host}, timeout=5)
        assert answer.status_code in (400, 421), host
        assert requests.get(f"{open_agent.url}/jobs/x", headers={"Host": host}, timeout=5).status_code in (400, 421)
    for host in ("localhost", f"localhost:{open_agent.port}", "127.0.0.1", "[::1]:1"):
        assert requests.get(f"{open_agent.url}/jobs/x", headers={"Host": host}, timeout=5).status_code == 404
    preflight = requests.options(url, headers={"Origin": "http://evil.example"}, timeout=5)
    assert not [name for name in preflight.headers if name.lower().startswith("access-control")]
    assert not open_agent.is_busy()


def test_charset_and_json_dialects(agent: Agent) -> None:
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"):
        assert agent.session.post(f"{agent.url}/jobs", data=b"{}", headers={"Content-Type": kind}).status_code == 422


# --- how much ------------------------------------------------------------------------------------------------


def raw(agent: Agent, data: bytes, timeout_s: float = 10) -> bytes:
    """What comes back for these bytes, until the connection ends."""
    with socket.create_connection(("127.0.0.1", agent.port), timeout_s) as sock:
        sock.sendall(data)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                got += piece
        return got


def head(agent: Agent, path: str = "/jobs", **headers: str) -> bytes:
    said = {"Host": "x", "Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in said.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def test_a_body_that_is_too_large(agent: Agent) -> None:
    for length in (MOST + 1, 10**12):
        assert b" 413 " in raw(agent, head(agent, Content_Length=str(length)))
    # More digits than Python makes a number of.
    assert raw(agent, head(agent, Content_Length="9" * 5000))[9:12] in (b"400", b"413")
    chunks = b"".join(b"10000\r\n" + b" " * 0x10000 + b"\r\n" for _ in range(5))
    assert b" 413 " in raw(agent, head(agent, Transfer_Encoding="chunked") + chunks)
    assert agent.session.post(f"{agent.url}/jobs", json={"x": "y" * (MOST - 100)}, timeout=5).status_code == 422


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[" * 100_000, b'{"a":' * 30_000, b"\xff\xfe", b"nonsense", b'{"jobId": ' + b"9" * 5000 + b"}"],
    ids=range(7),
)
def test_what_is_no_json(body: bytes, agent: Agent) -> None:
    for path in ("/jobs", "/jobs/cancel"):
        answer = agent.session.post(agent.url + path, data=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413), (path, answer.text[:200])


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "-Infinity", "1e999", "1e400", "9" * 300, "-1", "0.5", "true", "null", '"20"', "[]", "{}"],
)
def test_numbers_that_are_none(text: str, agent: Agent, store: HeldStore) -> None:
    body = json.dumps(store.envelope(parameters=parameters(steps=12321))).replace("12321", text)
    answer = agent.session.post(f"{agent.url}/jobs", data=body, headers={"Content-Type": "application/json"})
    if text == "null":  # left out: the job says so itself
        assert answer.status_code == 202
        assert agent.ended(EXAMPLE["jobId"])["error"]["reason_code"] == "VALIDATION_ERROR"
        return
    assert answer.status_code == 422, answer.text
    json.loads(answer.text)
    assert "steps" in answer.json()["problems"][0]["path"]


def test_every_problem_is_told(agent: Agent) -> None:
    answer = agent.post({"jobId": "", "output": {"bucket": "a/b", "prefix": "../x"}, "loras": 7, "unknown": 1})
    found = {problem["path"] for problem in answer.json()["problems"]}
    assert answer.status_code == 422
    assert found >= {"jobId", "output.bucket", "output.prefix", "loras", "user", "workflow", "baseModel", "parameters"}


def test_a_body_of_too_many_values(open_agent: Agent) -> None:
    """Within max_body_bytes; it is refused before it is parsed, which others would have to wait for."""
    body = b'{"x":[' + b",".join([b"[]"] * 5_000_000) + b"]}"
    answer = open_agent.session.post(
        f"{open_agent.url}/jobs", data=body, headers={"Content-Type": "application/json"}, timeout=20
    )
    assert (answer.status_code, "too many values" in answer.json()["detail"]) == (413, True)
    assert not open_agent.is_busy()


# --- following -----------------------------------------------------------------------------------------------


def events(agent: Agent, job_id: str, last: str | None = None) -> list[tuple[int, dict[str, Any]]]:
    """All events until the stream ends."""
    headers = {} if last is None else {"Last-Event-ID": last}
    with agent.session.get(
        f"{agent.url}/jobs/{quote(job_id, safe='/')}/events", headers=headers, stream=True, timeout=20
    ) as got:
        assert got.status_code == 200
        assert got.headers["Content-Type"].startswith("text/event-stream")
        found, number = [], 0
        for line in got.iter_lines(chunk_size=1):
            if line.startswith(b"id: "):
                number = int(line[4:])
            elif line.startswith(b"data: "):
                found.append((number, json.loads(line[6:])))
        return found


def test_a_job_is_followed(agent: Agent, store: HeldStore) -> None:
    agent.post(store.envelope(jobId="followed", parameters=parameters(steps=100)))
    found = events(agent, "followed")
    numbers, told = [number for number, _ in found], [event for _, event in found]
    states = list(dict.fromkeys(event["state"] for event in told))
    assert states == ["QUEUED", "PREPARING", "MATERIALIZING", "SUBMITTED", "RUNNING", "UPLOADING", "SUCCESS"]
    assert numbers == sorted(set(numbers))
    percents = [event["progress"]["percent"] for event in told if event.get("progress", {}).get("percent") is not None]
    assert percents == sorted(percents)
    assert any(0 < percent < 100 for percent in percents)
    # The agent's poll_interval_seconds is 0.05, a step takes 0.01.
    assert len([event for event in told if event["state"] == "RUNNING"]) < 60
    assert told[-1] == agent.job("followed")
    assert told[-1]["result"]["artifacts"][0]["kind"] == "images"
    assert "neon samurai" not in json.dumps(told)

    # Who comes back is told the rest, and nothing at the end.
    later = events(agent, "followed", str(numbers[2]))
    assert later[0][0] > numbers[2]
    assert later[-1] == found[-1]
    for number in (numbers[-1], 10**17):
        answer = agent.session.get(
            f"{agent.url}/jobs/followed/events", headers={"Last-Event-ID": str(number)}, timeout=5
        )
        assert (answer.status_code, answer.content) == (204, b"")
    for odd in ("x", "-1", "1.5", "9" * 30, ""):
        assert events(agent, "followed", odd)[-1] == found[-1]


def test_one_id_twice(agent: Agent, store: HeldStore) -> None:
    agent.post(store.envelope(jobId="twice"))
    agent.ended("twice")
    last = events(agent, "twice")[-1][0]
    agent.post(store.envelope(jobId="twice", baseModel={"bucket": "models", "key": "gone.safetensors"}))
    assert agent.ended("twice")["state"] == "FAILED"
    told = events(agent, "twice", str(last))
    assert told[0][1]["state"] == "QUEUED"
    assert told[-1][1]["error"]["reason_code"] == "VALIDATION_ERROR"


JOB_IDS = [
    "a/b/c",
    "../../etc/passwd",
    "/leading",
    "trailing/",
    "..",
    "x/events",
    "cancel",
    "a?b#c%41&d",
    "ünï/日本",
    "C:\\x",
    "a b",
    "%2e%2e",
]


@pytest.mark.parametrize("job_id", JOB_IDS)
def test_job_ids_are_any_text(job_id: str, agent: Agent, store: HeldStore) -> None:
    """Shown and found by them; never a path of anything but the archive, made safe there."""
    before = set(agent.root.rglob("*"))
    output = {**EXAMPLE["output"], "bucket": "outputs", "prefix": ""}
    assert agent.post(store.envelope(jobId=job_id, output=output)).json()["jobId"] == job_id

    def asked(path: str) -> Any:
        # Not by requests, which takes dots out of a path.
        connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=5)
        connection.request("GET", path, headers=BEARER)
        with contextlib.closing(connection):
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else answer.status

    path = "/jobs/" + quote(job_id, safe="")
    eventually(lambda: not agent.is_busy())
    found = asked(path)
    assert (found["jobId"], found["state"]) == (job_id, "SUCCESS")
    key = found["result"]["artifacts"][0]["s3"]["key"]
    assert key.startswith("comfy-outputs/")
    assert ".." not in key.split("/")
    new = set(agent.root.rglob("*")) - before
    logs = agent.outputs / "logs"
    record = re.compile(r"state(/jobs(/[0-9a-f]{32}\.json)?)?")
    others = [path.relative_to(agent.outputs).as_posix() for path in new if logs not in (path, *path.parents)]
    assert [name for name in others if not record.fullmatch(name)] == []
    assert len({path for path in new if path.parent == logs}) == 1


def test_a_client_that_goes_away(agent: Agent, store: HeldStore, server: EmbeddedServer) -> None:
    """Whole, or only its writing half: the agent goes on, and forgets it."""
    with held_in("RUNNING", store, server) as wanted:
        agent.post(store.envelope(jobId="left", parameters=wanted, cancelToken="stop"))
        request = b"GET /jobs/left/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
        socks = []
        for number in range(20):
            sock = socket.create_connection(("127.0.0.1", agent.port), 5)
            sock.sendall(request)
            assert b"200" in sock.recv(1000)
            if number % 2:
                sock.shutdown(socket.SHUT_WR)
                socks.append(sock)
            else:
                sock.close()
        # One that never reads holds nobody up.
        assert agent.session.get(f"{agent.url}/healthz", timeout=30).status_code == 200
        assert agent.cancel("stop") == 200
        assert agent.ended("left")["state"] == "CANCELED"
        for sock in socks:
            sock.close()


def test_unknown_jobs(agent: Agent) -> None:
    for path in ("/jobs/nobody", "/jobs/nobody/events", "/jobs/a/b/events", "/jobs/" + "x" * 5000):
        assert agent.session.get(agent.url + path, timeout=5).status_code == 404


# --- of itself -----------------------------------------------------------------------------------------------


def test_metrics(agent: Agent, store: HeldStore) -> None:
    requests.post(f"{agent.url}/jobs", json={}, timeout=5)
    agent.post({"jobId": "x" * MOST})
    agent.post({})
    agent.session.post(f"{agent.url}/jobs", data="{}", headers={"Content-Type": "text/plain"}, timeout=5)
    agent.post(store.envelope(jobId="measured"))
    agent.ended("measured")
    text = agent.session.get(f"{agent.url}/metrics", timeout=5).text
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}
    assert found['settee_jobs_total{outcome="SUCCESS",reason=""}'] >= 1
    for status in (401, 413, 415, 422):
        assert found[f'settee_refused_total{{status="{status}"}}'] >= 1
    for phase in ("preparing", "execution", "delivery", "models", "total"):
        assert found[f'settee_phase_seconds_count{{phase="{phase}"}}'] >= 1
    assert found["settee_staged_bytes_total"] >= 200
    assert found["settee_delivered_bytes_total"] > 0
    assert (found["settee_comfyui_restarts"], found["settee_queue_depth"]) == (0, 0)


def test_documentation(agent: Agent) -> None:
    page = agent.session.get(f"{agent.url}/docs", timeout=5).text
    named = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(named) == 3
    for name in named:
        assert agent.session.get(f"{agent.url}/{name}", timeout=5).status_code == 200, name
    schema = agent.session.get(f"{agent.url}/openapi.json", timeout=5).json()
    assert schema["components"]["schemas"]["Envelope"]["examples"] == [EXAMPLE]
    assert "security" not in schema["paths"]["/healthz"]["get"]
    assert schema["paths"]["/jobs"]["post"]["security"] == [{"bearer": []}]


def test_answers_and_callbacks_are_as_documented(agent: Agent, store: HeldStore, server: EmbeddedServer) -> None:
    """By their models, no field more; and the documented failure is what such a dispatch gives."""
    jobs = []
    with Receiver() as receiver:
        with held_in("RUNNING", store, server) as wanted:
            agent.post(store.envelope(receiver, jobId="told", parameters=wanted, cancelToken="stop it"))
            eventually(lambda: any("activity_snapshot" in call.body for call in receiver.delivered))
            eventually(lambda: "step" in agent.job("told").get("progress", {}))
            jobs.append(agent.job("told"))
            assert agent.cancel("stop it") == 200
            jobs.append(agent.ended("told"))
        agent.post(store.envelope(receiver, jobId="told too"))
        jobs.append(agent.ended("told too"))
        bindings = [
            *EXAMPLE["workflowParameters"][:-1],
            {"parameter": "scheduler", "node": 6, "path": "inputs.schedulr"},
        ]
        agent.post(store.envelope(receiver, jobId="told off", workflowParameters=bindings))
        jobs.append(agent.ended("told off"))
        for key in ("told-CANCELED", "told too-SUCCESS", "told off-FAILED"):
            receiver.wait_for_key(key)
    assert [job["state"] for job in jobs] == ["RUNNING", "CANCELED", "SUCCESS", "FAILED"]
    for job in jobs:
        Job.model_validate(job, extra="forbid")
    assert jobs[-1]["error"] == example("jobs")[2]["error"]
    models = {"status": StatusCallback, "completion": CompletionCallback, "failure": FailureCallback}
    for call in receiver.delivered:
        models[call.path.rpartition("/")[2]].model_validate(call.body, extra="forbid")
    states = {(call.path.rpartition("/")[2], call.state) for call in receiver.delivered}
    ends = {("completion", "SUCCESS"), ("failure", "FAILED"), ("failure", "CANCELED")}
    assert {state for state in states if state[0] != "status"} == ends
    assert {state for _, state in states} == {
        "QUEUED", "PREPARING", "MATERIALIZING", "SUBMITTED", "RUNNING", "UPLOADING", "SUCCESS", "FAILED", "CANCELED"
    }  # fmt: skip
