"""The client's command where its surroundings are odd: closed streams, other locales, odd names; and other targets:
the SDK's local API and a bare ComfyUI."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.backends.comfy.process import free_port
from tests.e2e.test_runpod_local import LocalApi
from tests.support.client_command import INVERT, PICTURE, Command, ended, interrupt
from tests.support.embedded import COMFY_COMMAND, EmbeddedServer
from tests.support.rig import empty, failing, slow
from tests.support.waiting import eventually
from tests.support.worker import REAL, ROOT, WorkerProcess


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("comfy")) as server:
        yield server


@pytest.fixture
def client(comfy: EmbeddedServer, tmp_path: Path) -> Command:
    client = Command(tmp_path, arguments=("--comfy", comfy.url))
    several = empty(5)
    for number in range(10, 14):
        several[str(number)] = {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": f"more{number}"},
        }
    graphs = {"quick": empty(), "several": several, "fails": failing("error"), "slow": slow(steps=600)}
    for name, graph in graphs.items():
        (client.folder / f"{name}.json").write_text(json.dumps(graph))
    return client


# --- a bare ComfyUI -------------------------------------------------------------------------------------


def test_a_bare_comfyui(client: Command) -> None:
    found = client.run(INVERT, "--img", PICTURE, "--json")
    assert (found.code, len(found.document["files"])) == (0, 1), found
    several = client.run("several.json")
    assert len({path.name for path in several.saved}) == 5, several
    assert all((client.folder / path).stat().st_size > 50 for path in several.saved)
    assert client.run("--health", "--json").document["system"]


def test_failures_of_a_bare_comfyui(client: Command) -> None:
    failed = client.run("fails.json", "--json")
    assert (failed.code, failed.document["status"]) == (4, "error"), failed
    assert "SetteeFault" in failed.document["error"]
    (client.folder / "bad.json").write_text(json.dumps({"1": {"class_type": "Nonsense", "inputs": {}}}))
    refused = client.run("bad.json", "--json")
    assert (refused.code, "Nonsense" in refused.document["error"]) == (3, True), refused


def test_a_bare_comfyui_is_interrupted_and_goes_on(client: Command, comfy: EmbeddedServer) -> None:
    process = client.start("slow.json", "--json")
    eventually(lambda: "slow" not in comfy.stats() and _is_busy(comfy), what="a running job")
    interrupt(process)
    found = ended(process)
    assert (found.code, "asked to end" in found.document["error"]) == (5, True), found
    assert client.run("quick.json").code == 0


def _is_busy(comfy: EmbeddedServer) -> bool:
    import requests

    return bool(requests.get(f"{comfy.url}/queue", timeout=5).json()["queue_running"])


def test_a_job_at_a_bare_comfyui_is_left_and_picked_up(client: Command) -> None:
    job_id = client.run("quick.json", "--detach").out.strip()
    found = client.run("--resume", job_id)
    assert (found.code, len(found.saved)) == (0, 1), found


# --- the SDK's local API --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalApi]:
    port = free_port()
    env = {
        "COMFY_COMMAND": COMFY_COMMAND,
        "COMFY_PORT": str(free_port()),
        "WORKSPACE_DIR": str(tmp_path_factory.mktemp("worker")),
    }
    with WorkerProcess("--rp_serve_api", "--rp_api_port", str(port), env=env, command=REAL) as worker:
        yield LocalApi(port, worker).wait()


def test_the_local_api(local: LocalApi, tmp_path: Path) -> None:
    client = Command(tmp_path, arguments=("--url", local.url))
    found = client.run(INVERT, "--img", PICTURE, "--json")
    assert (found.code, found.document["files"][0]["kind"]) == (0, "images"), found
    (client.folder / "bad.json").write_text(json.dumps({"1": {"class_type": "Nonsense", "inputs": {}}}))
    assert client.run("bad.json").code == 3
    assert client.run(INVERT, "--img", PICTURE, "--sync", "--repeat", "3", "--quiet").code == 0
    for question in (("--health",), ("--cancel", "test-1")):
        refused = client.run(*question, "--json")
        assert (refused.code, "local API" in refused.document["error"]) == (2, True), refused


# --- odd streams ----------------------------------------------------------------------------------------


def shell(client: Command, text: str) -> tuple[int, str]:
    """Exit code and everything that was written of a line for the shell, in which `client` is the command."""
    call = f'client() {{ "{sys.executable}" "{ROOT}/client.py" "$@" {" ".join(client.arguments)}; }}; {text}'
    found = subprocess.run(
        ["bash", "-c", call],
        cwd=client.folder,
        env={name: value for name, value in client.env.items() if name != "PYTHONUNBUFFERED"},
        capture_output=True,
        timeout=40,
        stdin=subprocess.DEVNULL,
    )
    return found.returncode, (found.stdout + found.stderr).decode(errors="replace")


def saved(client: Command) -> int:
    return len(list(client.folder.glob("out/**/*.png")))


@pytest.mark.parametrize(
    ("redirected", "count"),
    [
        ("client several.json | head -n 1; exit ${PIPESTATUS[0]}", 5),
        ("client several.json --json | head -c 5; exit ${PIPESTATUS[0]}", 5),
        ("client several.json 2>&1 | true; exit ${PIPESTATUS[0]}", 5),
        ("client quick.json --repeat 3 | true; exit ${PIPESTATUS[0]}", 3),
        ("client quick.json >&-", 1),
        ("client quick.json <&- >&- 2>&-", 1),
    ],
)
def test_nobody_who_reads_costs_no_result(client: Command, redirected: str, count: int) -> None:
    code, text = shell(client, redirected)
    assert (code, saved(client)) == (0, count), text
    assert "Error" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize(("close", "code"), [("", 120), ("streams.close()", 0)])
def test_a_reader_that_closes_at_the_very_end_costs_no_exit_code(close: str, code: int) -> None:
    """Python itself ends with 120 when what is still buffered cannot be written."""
    lines = f"""
import os, sys
from settee.client import streams
reads, writes = os.pipe()
os.dup2(writes, 1)
sys.stdout.write("not flushed")
os.close(reads), os.close(writes)
{close}
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, env=env, capture_output=True, timeout=60)
    assert done.returncode == code


def test_a_full_disk_behind_standard_output_is_said(client: Command) -> None:
    for more in ("--json", "--repeat 2"):
        code, text = shell(client, f"client quick.json {more} >/dev/full")
        assert (code, "standard output cannot be written" in text) == (2, True), text
        assert "Traceback" not in text
    assert saved(client) == 3


def test_standard_input_that_is_closed_holds_no_workflow(client: Command) -> None:
    code, text = shell(client, "client - <&-")
    assert (code, "standard input is empty" in text) == (2, True), text


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii"}])
def test_names_in_any_locale(client: Command, env: dict[str, str]) -> None:
    client.env |= env
    folder = "Böse 名前"
    code, text = shell(client, f"client quick.json --out '{folder}' && client quick.json --json --out '{folder}'")
    assert code == 0, text
    assert re.search(rf"^{folder}/made_\d+_\.png$", text, re.MULTILINE), text
    document = next(line for line in text.splitlines() if line.startswith("{"))
    path = json.loads(document)["files"][0]["path"]
    assert path.startswith(folder)
    assert (client.folder / path).is_file()


def test_a_name_that_is_no_text(client: Command) -> None:
    code, text = shell(client, "client quick.json --json --out $'o\\xff' --metadata")
    assert (code, json.loads(text.splitlines()[0])["status"]) == (0, "success"), text
    assert os.fsencode(json.loads(text.splitlines()[0])["files"][0]["path"]).startswith(b"o\xff/")


# --- clumsy hands ---------------------------------------------------------------------------------------


def test_odd_names(client: Command) -> None:
    names = ("-a.png", "a=b.png", "{x}.png", "名 前.png")
    for name in names:
        (client.folder / name).write_bytes(PICTURE.read_bytes())
        found = client.run(INVERT, f"--img={name}")
        assert found.code == 0, found
    (client.folder / "-w.json").write_text(INVERT.read_text())
    client.arguments = ()
    found = client.run("--dry-run", f"--img=1={names[0]}", "--", "-w.json")
    assert found.code == 0, found


#: What only a worker is installed with.
WORKERS = {"aiohttp", "boto3", "botocore", "cryptography", "fastapi", "isal", "orjson", "pydantic", "runpod"}


def test_help_needs_nothing(tmp_path: Path) -> None:
    """Neither what the client imports when it sends, nor anything of the worker's."""
    code = (
        "import sys, contextlib, io\n"
        "from settee.client.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "print(*sorted(name.split('.')[0] for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {
        "requests",
        "urllib3",
        "PIL",
        "websocket",
        "pydantic",
        "runpod",
        "boto3",
        "cryptography",
        "orjson",
        "aiohttp",
    }
    assert heavy.isdisjoint(found.stdout.split())
    assert "settee" in found.stdout.split()


def test_a_job_needs_nothing_of_the_workers(client: Command, comfy: EmbeddedServer) -> None:
    """It runs where none of their packages is installed; orjson is used where it is."""
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(WORKERS | {'pybase64'})!r}))\n"
        "from settee.client.cli import main\n"
        f"sys.exit(main(['quick.json', '--comfy', {comfy.url!r}]))"
    )
    env: dict[str, Any] = {**client.env, "PYTHONPATH": str(ROOT)}
    found = subprocess.run([sys.executable, "-c", code], cwd=client.folder, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert re.fullmatch(r"out/made_\d+_\.png\n", found.stdout)
