"""Ctrl-C at every moment of the client's command, in a pipe and in a terminal; what a terminal shows meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_command import Command, ended, endpoint_env, interrupt
from tests.support.public_api import PublicApi
from tests.support.rig import empty, slow
from tests.support.waiting import eventually


@pytest.fixture
def client(api: PublicApi, tmp_path: Path) -> Command:
    client = Command(tmp_path, endpoint_env(api))
    (client.folder / "slow.json").write_text(json.dumps(slow(steps=600)))
    (client.folder / "quick.json").write_text(json.dumps(empty()))
    return client


def runs(api: PublicApi) -> str:
    """The id of the job that runs now."""

    def one() -> Any:
        return [job for job in api.jobs() if api.status(job)[1]["status"] == "IN_PROGRESS"]

    return str(eventually(one, what="a running job")[-1])


def state(api: PublicApi, job_id: str) -> str:
    return str(api.status(job_id)[1]["status"])


# --- in a pipe ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("json_too", [False, True])
def test_an_interrupt_cancels_the_job_when_nobody_can_be_asked(client: Command, api: PublicApi, json_too: bool) -> None:
    process = client.start("slow.json", *(["--json"] if json_too else []))
    job_id = runs(api)
    interrupt(process)
    found = ended(process)
    assert found.code == 5
    assert state(api, job_id) == "CANCELLED"
    assert "asked to end" in found.err
    assert "Traceback" not in found.err
    if json_too:
        assert found.document["job_id"] == job_id
    else:
        assert found.out == ""


def test_an_interrupt_while_the_job_is_sent_waits_for_its_id(client: Command, api: PublicApi) -> None:
    before = len(api.jobs())
    fault = api.fault("run", delay_s=1.0)
    process = client.start("slow.json")
    eventually(lambda: fault.times == 0, what="the request")
    interrupt(process)
    found = ended(process)
    assert found.code == 5
    assert "as soon as the job is accepted" in found.err
    [job_id] = api.jobs()[before:]
    assert state(api, job_id) == "CANCELLED"


def test_two_interrupts_while_the_job_is_sent_say_what_is_not_known(client: Command, api: PublicApi) -> None:
    fault = api.fault("run", delay_s=20.0, status=400)
    process = client.start("slow.json", stderr=subprocess.STDOUT)
    eventually(lambda: fault.times == 0, what="the request")
    interrupt(process)
    assert process.stdout is not None
    assert any("accepted or refused" in line for line in process.stdout), "it ended without a word"
    interrupt(process)
    found = ended(process, 15)
    assert (found.code, "may have been accepted" in found.out) == (5, True), found


def test_an_interrupt_between_tries_sends_nothing(client: Command, api: PublicApi) -> None:
    before = len(api.jobs())
    api.fault("run", times=100, status=429, headers={"Retry-After": "30"})
    process = client.start("slow.json")
    eventually(lambda: api.count("run") > 0, what="the request")
    interrupt(process)
    found = ended(process, 20)
    assert (found.code, "no job is left running there" in found.err) == (5, True), found
    assert len(api.jobs()) == before


def test_an_interrupt_before_a_resumed_job_is_found(client: Command, api: PublicApi) -> None:
    job_id = api.run(json.dumps({"input": {"workflow": slow(steps=600)}}).encode(), sync=False)[1]["id"]
    runs(api)
    api.fault("status", times=100, status=500)
    process = client.start("--resume", job_id)
    eventually(lambda: api.count("status") > 0, what="the request")
    interrupt(process)
    found = ended(process, 20)
    assert (found.code, "may have been accepted" in found.err) == (5, False), found
    assert state(api, job_id) == "IN_PROGRESS"
    api.cancel(job_id)


def test_an_interrupt_before_anything(client: Command) -> None:
    os.mkfifo(client.folder / "pipe.json")
    process = client.start("pipe.json", "--json")
    # Opens when the command does.
    with (client.folder / "pipe.json").open("w"):
        time.sleep(0.5)  # a signal just before it waits for the content would be heard of after that
        interrupt(process)
        found = ended(process)
    assert (found.code, found.document["error"]) == (5, "stopped: no job was sent"), found


# --- in a terminal --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "then"), [("y\r", "CANCELLED"), ("\r", "CANCELLED"), ("n\r", "IN_PROGRESS")])
def test_a_terminal_is_asked(client: Command, api: PublicApi, answer: str, then: str) -> None:
    with client.terminal("slow.json") as terminal:
        job_id = runs(api)
        terminal.read_until("running")
        terminal.interrupt()
        terminal.read_until("Cancel it there? [Y/n]")
        terminal.type(answer)
        assert terminal.end() == 5
        assert state(api, job_id) == then
        left = "\n".join(terminal.screen.text)
        assert (f"--resume {job_id}" in left) == (then == "IN_PROGRESS")
        assert "running" not in left, "the live row is gone"
        assert terminal.screen.cursor_shown
        assert terminal.screen.wraps
    api.cancel(job_id)


def test_a_second_interrupt_leaves_the_job(client: Command, api: PublicApi) -> None:
    with client.terminal("slow.json") as terminal:
        job_id = runs(api)
        terminal.read_until("running")
        terminal.interrupt()
        terminal.read_until("there?")
        terminal.interrupt()
        assert terminal.end() == 5
        assert state(api, job_id) == "IN_PROGRESS"
        assert f"--resume {job_id} picks it up" in "".join(terminal.screen.text)
        assert "Traceback" not in terminal.written
    api.cancel(job_id)


@pytest.mark.parametrize("columns", [60, 200])
def test_rows_fit_a_terminal(client: Command, columns: int) -> None:
    graph = slow(steps=30, delay_ms=40)
    graph["5"]["_meta"] = {"title": "名前" * 60}
    (client.folder / "long.json").write_text(json.dumps(graph))
    with client.terminal("long.json", "--set", "5.delay_ms=60", "--seed", columns, columns=columns) as terminal:
        terminal.read_until("step")
        row = next(row for row in terminal.screen.text if "step" in row)
        assert row.startswith("running")
        assert ("█" in row) == (columns == 200)
        assert terminal.end() == 0
        assert columns // 2 < terminal.screen.widest <= columns
        assert terminal.screen.text[-2:] == ["out/made_00001_.png", ""]
        assert not any("step" in row for row in terminal.screen.text if row.startswith("running"))


@pytest.mark.parametrize("columns", [60, 200])
def test_rows_of_many_jobs_fit_a_terminal(client: Command, columns: int) -> None:
    rows = [{"name": f"名前-{number}-{'lang' * 3}", "set": {"9.filename_prefix": f"p{number}"}} for number in range(6)]
    (client.folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with client.terminal("quick.json", "--batch", "jobs.jsonl", columns=columns) as terminal:
        terminal.read_until("of 6 done")
        assert terminal.end() == 0
        assert terminal.screen.widest <= columns
        assert len([row for row in terminal.screen.text if row.startswith("out/")]) == 6
        assert not any("done" in row for row in terminal.screen.text), "the summary row is gone"


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_terminal_that_cannot_gets_lines(client: Command, term: str | None) -> None:
    if term is None:
        del client.env["TERM"]
    with client.terminal("quick.json", env={"TERM": term} if term else None) as terminal:
        assert terminal.end() == 0
        assert "\x1b" not in terminal.written
        assert any("completed" in row for row in terminal.screen.text)
