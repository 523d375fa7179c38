"""Many dispatches to one agent, which is killed at a random moment of one in twenty: no end is lost, doubled or late.

SETTEE_SOAK says how many dispatches; without it there are a few.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.agent import Agent, HeldStore, comfy, parameters
from tests.support.embedded import EmbeddedServer
from tests.support.http_double import Reply
from tests.support.receiver import OK, Call, Receiver
from tests.support.waiting import eventually

DISPATCHES = int(os.environ.get("SETTEE_SOAK", "20"))
EVERY = 20
#: A job takes some tenths of a second and 0.01 s for each step; kills fall into it, around it, and behind it.
LONGEST_S, LONGEST_STEPS = 1.2, 100


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with comfy(tmp_path / "comfy", faults={"step_slow": 0.01}) as server:
        yield server


@pytest.fixture
def store() -> Iterator[HeldStore]:
    with HeldStore().running() as store:
        assert isinstance(store, HeldStore)
        yield store


class Soak:
    def __init__(self, agent: Agent, store: HeldStore, receiver: Receiver, seed: int) -> None:
        self.agent, self.store, self.receiver, self.choice = agent, store, receiver, random.Random(seed)
        self.accepted: list[str] = []
        self.kills = 0

    def dispatch(self, number: int, *, is_killed: bool) -> None:
        """Send a job until it is accepted; a dispatch whose answer was lost is sent again under its key."""
        job_id = f"job-{number}"
        steps = self.choice.randrange(1, LONGEST_STEPS) if is_killed else 1
        envelope = self.store.envelope(self.receiver, jobId=job_id, parameters=parameters(steps=steps))
        is_during_dispatch = is_killed and self.choice.random() < 0.25
        killer = threading.Timer(self.choice.random() * 0.1, self.kill)
        if is_during_dispatch:
            eventually(lambda: not self.agent.is_busy(), 60, "the job before has ended")
            killer.start()
        eventually(lambda: self.is_accepted(envelope), 60, f"{job_id} is accepted")
        self.accepted.append(job_id)
        if is_during_dispatch:
            killer.join()
        elif is_killed:
            threading.Event().wait(self.choice.random() * LONGEST_S)
            self.kill()
        self.ensure_it_runs()

    def is_accepted(self, envelope: dict[str, Any]) -> bool:
        try:
            answer = self.agent.post(envelope, headers={"Idempotency-Key": envelope["jobId"]})
        except requests.RequestException:
            self.ensure_it_runs()
            return False
        assert answer.status_code in (202, 409), answer.text
        return answer.status_code == 202

    def ensure_it_runs(self) -> None:
        assert self.agent.process is not None
        if self.agent.process.poll() is not None:
            self.agent.start()

    def kill(self) -> None:
        process = self.agent.process
        assert process is not None
        process.kill()
        process.wait()
        self.kills += 1


@pytest.mark.timeout(120 + 10 * DISPATCHES)
def test_no_end_is_lost_doubled_or_out_of_order(tmp_path: Path, store: HeldStore, server: EmbeddedServer) -> None:
    failing = random.Random(7)

    def rule(call: Call) -> Reply:
        return Reply(failing.choice([500, 503, 429])) if failing.random() < 0.1 else OK

    agent = Agent(tmp_path, store, server, paths={"outputs": str(server.output_dir)}, state_dir=str(tmp_path / "state"))
    with Receiver(rule) as receiver, agent:
        soak = Soak(agent, store, receiver, seed=11)
        for first in range(0, DISPATCHES, EVERY):
            killed = first + soak.choice.randrange(min(EVERY, DISPATCHES - first))
            for number in range(first, min(first + EVERY, DISPATCHES)):
                soak.dispatch(number, is_killed=number == killed)
        eventually(lambda: ends(receiver).keys() >= set(soak.accepted), 60, "every job has an end")
        eventually(lambda: pending(agent) == 0, 60, "nothing is left to send")
        assert len(soak.accepted) == DISPATCHES
        check(receiver, soak)


def pending(agent: Agent) -> float:
    text = agent.session.get(f"{agent.url}/metrics", timeout=10).text
    return float(next(line for line in text.splitlines() if line.startswith("settee_callbacks_pending ")).split()[1])


def is_terminal(call: Call) -> bool:
    return not call.path.endswith("status")


def ends(receiver: Receiver) -> dict[str, set[tuple[str, bytes]]]:
    """By job, the keys and bytes of the terminal callbacks that were delivered."""
    found: dict[str, set[tuple[str, bytes]]] = {}
    for call in receiver.delivered:
        if is_terminal(call):
            found.setdefault(call.body["job_id"], set()).add((call.key, call.raw))
    return found


def check(receiver: Receiver, soak: Soak) -> None:
    found = ends(receiver)
    assert found.keys() == set(soak.accepted), "jobs that nobody sent"
    doubled = {job: [key for key, _ in each] for job, each in found.items() if len(each) > 1}
    assert not doubled, "more than one end"
    late, ended, seqs = [], dict[str, str](), dict[str, int]()
    for call in receiver.calls:
        job = call.body["job_id"]
        if job in ended and call.key != ended[job]:
            late.append((ended[job], call.key))
        if is_terminal(call):
            ended[job] = call.key
        else:
            seq = call.body["heartbeat_seq"]
            assert seq >= seqs.get(job, 0), f"statuses of {job} out of order"
            seqs[job] = seq
    assert not late, "something came after an end"
    failed = [job for job, each in found.items() if any(not key.endswith("-SUCCESS") for key, _ in each)]
    print(f"{len(found)} jobs, {soak.kills} kills, {len(failed)} interrupted, {len(receiver.calls)} callbacks")
    assert len(failed) <= soak.kills
