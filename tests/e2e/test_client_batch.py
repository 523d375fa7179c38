"""Many jobs by the client's command: a batch with failures in it, killed and run again, and --repeat."""

from __future__ import annotations

import csv
import json
import resource
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_command import (
    INVERT,
    PICTURE,
    Command,
    Ended,
    ended,
    endpoint_env,
    interrupt,
)
from tests.support.public_api import PublicApi
from tests.support.rig import empty, failing, slow
from tests.support.waiting import eventually


@pytest.fixture
def client(api: PublicApi, tmp_path: Path) -> Command:
    client = Command(tmp_path, endpoint_env(api))
    (client.folder / "quick.json").write_text(json.dumps(empty()))
    (client.folder / "fails.json").write_text(json.dumps(failing("error", message="it broke")))
    (client.folder / "slow.json").write_text(json.dumps(slow(steps=8, delay_ms=30)))
    return client


def batch(client: Command, rows: list[dict[str, Any]], name: str = "jobs.jsonl") -> str:
    (client.folder / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return name


def ledger(client: Command) -> dict[str, dict[str, Any]]:
    """The last line of every job, by its name."""
    lines = (client.folder / "out/settee-batch.jsonl").read_text().splitlines()
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def colour(number: int) -> dict[str, Any]:
    return {"name": f"job {number}", "set": {"1.color": number}}


def done(found: Ended) -> list[str]:
    return [job["name"] for job in found.document["jobs"] if job["status"] == "done"]


def test_fifty_jobs_with_failures_among_them(client: Command, api: PublicApi) -> None:
    rows = [colour(number) for number in range(50)]
    for number in (3, 17, 49):
        rows[number] |= {"workflow": "fails.json", "set": {"5.message": f"broken {number}"}}
    rows[20] |= {"workflow": INVERT.as_posix(), "img": "nowhere.png", "set": {}}
    rows[30] |= {"set": {"1.colour": 3}}
    name = batch(client, rows)
    api.fault("run", times=3, status=429, headers={"Retry-After": "0"})
    api.fault("status", times=3, status=502)
    before = len(api.jobs())
    found = client.run("quick.json", "--batch", name, "--jobs", "8", "--json", timeout_s=60)
    assert found.code == 4, found
    assert (found.document["status"], found.document["done"]) == ("error", 45)
    jobs = {job["name"]: job for job in found.document["jobs"]}
    assert len(jobs) == 50
    assert "broken 17" in jobs["job 17"]["error"]
    assert "did you mean" in jobs["job 30"]["error"]
    assert "nowhere.png" in jobs["job 20"]["error"]
    assert (client.folder / jobs["job 5"]["files"][0]["path"]).is_file()
    assert len(api.jobs()) == before + 48, "what cannot be sent is not sent"
    assert "\x1b" not in found.err
    # Put right, the same command sends what did not succeed, and no other.
    rows[3] = colour(3)
    (client.folder / "nowhere.png").write_bytes(PICTURE.read_bytes())
    batch(client, rows)
    again = client.run("quick.json", "--batch", name, "--json", timeout_s=60)
    assert (again.code, again.document["skipped"]) == (4, 45), again
    assert done(again) == ["job 3", "job 20"]
    assert len(api.jobs()) == before + 48 + 4


@pytest.mark.parametrize("killed", ["killed", "interrupted"])
def test_a_batch_that_was_ended_goes_on(client: Command, api: PublicApi, killed: str) -> None:
    rows = [colour(number) | {"workflow": "slow.json"} for number in range(7)]
    name = batch(client, rows)
    before = len(api.jobs())
    process = client.start("--batch", name, "--jobs", "3")

    def halfway() -> bool:
        sent = len(ledger_ids(client))
        return sent == len(api.jobs()) - before and len(list(client.folder.glob("out/job */*.png"))) >= 3

    eventually(halfway, what="three jobs")
    if killed == "killed":
        process.send_signal(signal.SIGKILL)
        ended(process)
    else:
        interrupt(process)
        first = ended(process)
        assert (first.code, "asked to end" in first.err) == (5, True), first
        assert all(api.status(job)[1]["status"] not in ("IN_QUEUE", "IN_PROGRESS") for job in api.jobs())
    known = ledger_ids(client)
    #: Taken, and nobody lived to hear its id.
    unheard = set(api.jobs()[before:]) - known
    assert len(unheard) == 0 or killed == "killed"
    with (client.folder / "out/settee-batch.jsonl").open("a") as file:
        file.write('{"key": "half a li')
    again = client.run("--batch", name, "--json", timeout_s=60)
    assert again.code == 0, again
    assert len(done(again)) + again.document["skipped"] == 7
    sent = api.jobs()[before:]
    states = Counter(api.status(job)[1]["status"] for job in sent)
    assert states["COMPLETED"] == 7 + len(unheard), "nothing that succeeded was sent twice"
    if killed == "killed":
        assert len(sent) == 7 + len(unheard), "what was sent was picked up"
    # One that was killed between the last byte and the ledger's line is fetched twice, and stays next to its twin.
    assert len({path.parent for path in client.folder.glob("out/job */*.png")}) == 7
    third = client.run("--batch", name, "--json")
    assert (third.document["skipped"], done(third), third.code) == (7, [], 0)
    assert {job["status"] for job in third.document["jobs"]} == {"done_before"}
    assert all((client.folder / job["files"][0]["path"]).is_file() for job in third.document["jobs"])
    # A result that was deleted is wanted again.
    next(client.folder.glob("out/job 4/*.png")).unlink()
    assert done(client.run("--batch", name, "--json")) == ["job 4"]


def ledger_ids(client: Command) -> set[str]:
    """Of every job that the ledger has heard of."""
    path = client.folder / "out/settee-batch.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return {json.loads(line)["job_id"] for line in lines if line.endswith("\n")}


def test_a_job_out_of_our_time_is_not_sent_again(client: Command, api: PublicApi) -> None:
    (client.folder / "slow.json").write_text(json.dumps(slow(steps=30, delay_ms=50)))
    before = len(api.jobs())
    first = client.run("slow.json", "--repeat", "1", "--timeout", "0.3", "--json")
    assert (first.code, first.document["jobs"][0]["status"]) == (5, "failed")
    again = client.run("slow.json", "--repeat", "1", "--json")
    assert (again.code, len(again.document["jobs"][0]["files"])) == (0, 1), again
    assert len(api.jobs()) == before + 1


def test_a_result_that_could_not_be_saved_is_asked_for_again(client: Command, api: PublicApi) -> None:
    name = batch(client, [{"name": "a", "set": {"1.width": 1024, "1.height": 1024}}])
    before = len(api.jobs())
    (client.folder / "out").mkdir()
    (client.folder / "out/a").write_text("in the way")
    assert client.run("quick.json", "--batch", name).code == 2
    assert len(api.jobs()) == before, "it is known before the job is sent"
    (client.folder / "out/a").unlink()

    def full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    found = client.run("quick.json", "--batch", name, "--json", preexec_fn=full_disk)
    assert (found.code, "was not saved" in found.err) == (2, True), found
    assert done(client.run("quick.json", "--batch", name, "--json")) == ["a"]
    assert len(api.jobs()) == before + 1, "it is paid for"


@pytest.mark.parametrize("full_at", [100, 2000])
def test_nothing_more_is_sent_when_the_disk_is_full(client: Command, api: PublicApi, full_at: int) -> None:
    rows = [{"name": f"j{number}", "set": {"1.width": 1024, "1.height": 1024 + number}} for number in range(6)]
    name = batch(client, rows)
    before = len(api.jobs())

    def full_disk() -> None:
        # Of one file: the first line of the ledger, or the first picture.
        resource.setrlimit(resource.RLIMIT_FSIZE, (full_at, full_at))

    found = client.run("quick.json", "--batch", name, "--jobs", "1", "--json", preexec_fn=full_disk)
    jobs = found.document["jobs"]
    assert (found.code, len(jobs), len(api.jobs()) - before) == (2, 6, 1), found
    assert f"--resume {jobs[0]['job_id']}" in jobs[0]["error"], "who has paid for it can fetch it"
    assert all(job["error"].startswith("not sent: ") for job in jobs[1:]), jobs


def test_two_runs_of_one_batch(client: Command) -> None:
    name = batch(client, [colour(number) | {"workflow": "slow.json"} for number in range(3)])
    process = client.start("--batch", name, "--json")
    eventually(lambda: (client.folder / "out/settee-batch.jsonl").exists(), what="the ledger")
    other = client.run("--batch", name)
    assert (other.code, "another run" in other.err) == (2, True), other
    assert len(done(ended(process))) == 3


def test_repeat_draws_a_seed_that_is_written_in_a_primitive(client: Command) -> None:
    graph = slow(steps=1, delay_ms=0)
    graph["5"]["inputs"]["seed"] = ["20", 0]
    graph["20"] = {"class_type": "PrimitiveInt", "inputs": {"value": 77}, "_meta": {"title": "Seed"}}
    (client.folder / "linked.json").write_text(json.dumps(graph))
    found = client.run("linked.json", "--repeat", "3", "--json")
    made = {job["files"][0]["sha256"]: job["seeds"]["20.value"] for job in found.document["jobs"]}
    assert (found.code, len(made), len(set(made.values()))) == (0, 3, 3), found
    assert "warning" not in found.err


def test_repeat_says_that_there_is_no_seed_to_draw(client: Command) -> None:
    found = client.run("quick.json", "--repeat", "3")
    assert (found.code, found.err.count("has no seed to draw")) == (0, 1), found


def test_repeat(client: Command) -> None:
    found = client.run("slow.json", "--repeat", "3", "--json")
    jobs = found.document["jobs"]
    assert [job["name"] for job in jobs] == ["001", "002", "003"], found
    assert len({job["seeds"]["5.seed"] for job in jobs}) == 3
    assert not (client.folder / "out/settee-batch.jsonl").exists(), "the next --repeat is wanted anew"
    assert len(client.run("slow.json", "--repeat", "2").saved) == 2


def test_csv(client: Command) -> None:
    with (client.folder / "jobs.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["name", "width", "set"], ["eins ö", 32, "1.color=255"], ["zwei", "", "1.color=3;1.height=8"]]
        )
    found = client.run("quick.json", "--batch", "jobs.csv", "--json")
    assert done(found) == ["eins ö", "zwei"], found
    assert ledger(client)["zwei"]["status"] == "done"


def test_a_target_that_is_gone_ends_the_batch(client: Command) -> None:
    name = batch(client, [colour(number) for number in range(20)])
    found = client.run("quick.json", "--batch", name, "--json", "--jobs", "2", env={"RUNPOD_API_KEY": "rpa_no"})
    assert (found.code, found.document["done"]) == (6, 0)
    assert sum("not sent" in job["error"] for job in found.document["jobs"]) >= 18
    assert not (client.folder / "out/settee-batch.jsonl").exists()


def test_a_dry_run_of_many(client: Command, api: PublicApi) -> None:
    name = batch(client, [colour(1), {"prompt": "a fox"}])
    found = client.run("quick.json", "--batch", name, "--dry-run", "--json")
    assert (found.code, found.document["status"], len(found.document["jobs"])) == (2, "error", 2)
    assert "workflow" in found.document["jobs"][0]
    assert "--prompt" in found.document["jobs"][1]["error"]
    assert api.asked == []
