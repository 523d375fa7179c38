"""The client's command against RunPod's public API, with a real worker on the embedded ComfyUI behind it."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from settee.backends.comfy.process import free_port
from settee.base.sealing import generate_key
from settee.client import cli
from tests.support.client_command import INVERT, PICTURE, Command, endpoint_env, runpod_with_worker
from tests.support.public_api import PublicApi
from tests.support.rig import empty, failing, png, slow

SEAL_KEY = generate_key()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicApi]:
    with runpod_with_worker(tmp_path_factory.mktemp("worker"), ENCRYPTION_KEY=SEAL_KEY) as api:
        yield api


@pytest.fixture
def client(api: PublicApi, tmp_path: Path) -> Command:
    return Command(tmp_path, endpoint_env(api))


def written(client: Command, name: str, graph: Any) -> str:
    (client.folder / name).write_text(json.dumps(graph))
    return name


def colour(path: Path) -> Any:
    with Image.open(path) as picture:
        return picture.convert("RGB").getpixel((5, 5))


def two_outputs() -> dict[str, Any]:
    graph = json.loads(INVERT.read_text())
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "same"}}
    return dict(graph)


# --- what comes back ------------------------------------------------------------------------------------


def test_a_picture_goes_there_and_others_come_back(client: Command) -> None:
    (client.folder / "ein Bild ö.png").write_bytes(png((1, 2, 3)))
    workflow = written(client, "w f.json", two_outputs())
    found = client.run(workflow, "--img", "ein Bild ö.png", "--out", "pictures", "--metadata")
    assert found.code == 0, found
    assert found.saved == [Path("pictures/inverted_00001_.png"), Path("pictures/same_00001_.png")]
    assert [colour(client.folder / path) for path in found.saved] == [(254, 253, 252), (1, 2, 3)]
    note = json.loads((client.folder / "pictures/same_00001_.png.json").read_text())
    assert note["workflow"]["1"]["inputs"]["image"].endswith(".png")
    assert "\x1b" not in found.out + found.err, "no control codes in a pipe"
    assert "--img" in found.err, "what is changed is shown before it is sent"


def test_workflow_by_name_by_stdin_and_behind_its_picture(client: Command) -> None:
    for arguments, text in (
        (("invert", "--img", PICTURE), None),
        (("-", "--img", PICTURE), INVERT.read_text()),
        (("--img", PICTURE, INVERT), None),
        ((f"--img={PICTURE}", "--", INVERT), None),
    ):
        found = client.run(*arguments, input=text)
        assert found.code == 0, found
        assert (client.folder / found.saved[0]).is_file()


def test_the_workflow_in_a_picture_runs_again(client: Command) -> None:
    first = client.run(written(client, "w.json", empty(0x336699)))
    again = client.run(first.saved[0], "--json")
    assert again.code == 0, again
    assert colour(client.folder / again.document["files"][0]["path"]) == (0x33, 0x66, 0x99)


@pytest.mark.parametrize("how", ["file", "environment"])
def test_a_sealed_job(client: Command, api: PublicApi, how: str) -> None:
    (client.folder / "key.txt").write_text(f"{SEAL_KEY}\n")
    (client.folder / "key.txt").chmod(0o600)
    given = ("--key-file", "key.txt") if how == "file" else ()
    env = {} if how == "file" else {"ENCRYPTION_KEY": SEAL_KEY}
    found = client.run(INVERT, "--img", PICTURE, *given, env=env)
    assert (found.code, len(found.saved)) == (0, 1), found
    assert set(api.inputs()[-1]) == {"encrypted_input", "is_encrypted"}
    other = client.run(INVERT, "--img", PICTURE, "--json", env={"ENCRYPTION_KEY": generate_key()})
    assert (other.code, other.document["code"]) == (3, "seal_broken"), other


def test_a_loader_without_a_file_is_told_of_where_none_can_be(client: Command) -> None:
    words = "1 LoadImage \"Load Image\" loads 'example.png', and no file is given for it: --img FILE"
    assert words in client.run(INVERT, "--dry-run").err
    assert words not in client.run(INVERT, "--dry-run", "--img", PICTURE).err
    assert client.run(INVERT, "--dry-run", "--quiet").err == ""


def test_who_named_no_target_is_told_where_jobs_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr("settee.client.endpoint.LOCAL_URL", nowhere)
    monkeypatch.delenv("RUNPOD_ENDPOINT_ID", raising=False)
    words = "the default address, as neither --endpoint, --url nor --comfy is given; to try: settee-worker --demo"
    assert cli.main(["--health", "--url", nowhere]) == 6
    assert words not in capsys.readouterr().err
    assert cli.main(["--health"]) == 6
    assert words in capsys.readouterr().err


def test_output_may_go_to_a_stream_without_an_encoding() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert cli.main([str(INVERT), "--img", str(PICTURE), "--dry-run"]) == 0
    assert "LoadImage" in said.getvalue()


def test_dry_run_sends_nothing(client: Command, api: PublicApi) -> None:
    found = client.run(INVERT, "--img", PICTURE, "--dry-run", "--save-workflow", "made.json")
    assert (found.code, found.out) == (0, ""), found
    made = json.loads((client.folder / "made.json").read_text())
    assert made["1"]["inputs"]["image"].endswith("example.png")
    piped = client.run(INVERT, "--img", PICTURE, "--dry-run", "--save-workflow", "-", "--quiet")
    assert (json.loads(piped.out), piped.err) == (made, "")
    document = client.run(INVERT, "--img", PICTURE, "--dry-run", "--json").document
    assert (document["status"], document["workflow"]) == ("dry_run", made)
    both = client.run(INVERT, "--dry-run", "--save-workflow", "-", "--json")
    assert (both.code, both.document["status"]) == (2, "error")
    assert api.asked == []
    assert not (client.folder / "out").exists()


# --- every end ------------------------------------------------------------------------------------------

OUTCOMES: dict[str, tuple[tuple[object, ...], dict[str, str], int, str]] = {
    "ok": (("ok.json",), {}, 0, "success"),
    "no such workflow": (("nowhere.json",), {}, 2, "error"),
    "no such option": (("ok.json", "--nonsense"), {}, 2, "error"),
    "no place for it": (("ok.json", "--prompt", "a fox"), {}, 2, "error"),
    "files too many": (("ok.json", "--img", PICTURE), {}, 2, "error"),
    "refused": (("bad.json",), {}, 3, "error"),
    "failed": (("fails.json",), {}, 4, "error"),
    "out of our time": (("slow.json", "--timeout", "0.5"), {}, 5, "error"),
    "out of the worker's time": (("slow.json", "--job-timeout", "1"), {}, 5, "error"),
    "wrong key": (("ok.json",), {"RUNPOD_API_KEY": "rpa_no"}, 6, "error"),
    "an unknown job": (("--resume", "no-such-job"), {}, 5, "error"),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_has_its_exit_code_and_one_document(client: Command, outcome: str) -> None:
    arguments, env, code, status = OUTCOMES[outcome]
    bad = empty()
    bad["1"]["class_type"] = "EmptyImagee"
    graphs = {"ok": empty(7), "bad": bad, "fails": failing("error", message="it broke ☠"), "slow": slow(steps=300)}
    for name, graph in graphs.items():
        written(client, f"{name}.json", graph)
    found = client.run(*arguments, "--json", env=env)
    assert (found.code, found.document["status"]) == (code, status), found
    assert "Traceback" not in found.err
    assert ("error" in found.document) == (code != 0)
    if outcome == "failed":
        assert "it broke ☠" in found.document["error"]
        assert found.document["details"]["node_id"] == "5"
    if outcome == "out of our time":
        assert client.run("--cancel", found.document["job_id"]).code == 0


def test_a_troubled_api_costs_time_and_no_second_job(client: Command, api: PublicApi) -> None:
    before = len(api.inputs())
    api.fault("run", status=429, times=2, headers={"Retry-After": "0"})
    api.fault("status", status=503)
    api.fault("status", truncate=20)
    api.fault("status", cut_after=0)
    found = client.run(written(client, "w.json", empty(9)))
    assert found.code == 0, found
    assert len(api.inputs()) == before + 1
    assert api.count("run") == 3


# --- jobs that were sent --------------------------------------------------------------------------------


def test_detach_and_resume(client: Command) -> None:
    job_id = client.run(written(client, "w.json", empty(10)), "--detach").out.strip()
    found = client.run("--resume", job_id, "--json")
    assert (found.code, found.document["job_id"]) == (0, job_id), found
    assert (client.folder / found.document["files"][0]["path"]).is_file()
    detached = client.run("w.json", "--detach", "--json").document
    assert detached["job_id"] != job_id


def test_detach_and_cancel(client: Command, api: PublicApi) -> None:
    job_id = client.run(written(client, "w.json", slow(steps=400)), "--detach", "--quiet").out.strip()
    assert client.run("--cancel", job_id, "--json").document == {"status": "cancel_requested", "job_id": job_id}
    found = client.run("--resume", job_id)
    assert (found.code, found.out) == (5, "")
    assert "canceled" in found.err
    assert api.status(job_id)[1]["status"] == "CANCELLED"


def test_health(client: Command) -> None:
    found = client.run("--health", "--json")
    assert found.document["workers"]["ready"] == 1


def test_sync(client: Command, api: PublicApi) -> None:
    found = client.run(written(client, "w.json", empty(11)), "--sync")
    assert (found.code, len(found.saved)) == (0, 1), found
    assert (api.count("runsync"), api.count("run")) == (1, 0)
