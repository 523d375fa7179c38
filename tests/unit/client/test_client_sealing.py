"""Keys come from where the caller says, and what is sealed opens with the right one only."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from settee.base.errors import ExecutionFailed
from settee.base.sealing import Sealer as WorkersSealer
from settee.base.sealing import generate_key, keygen
from settee.client import Endpoint, sealed_jobs
from settee.client.arguments import Environment
from settee.client.client_errors import UsageError
from settee.client.job_outputs import outputs_of
from settee.client.saving import Result
from settee.client.sealed_jobs import Sealer
from settee.doors.runpod.render import closed, closed_error
from tests.support.file_server import FileServer

KEY, OTHER = generate_key(), generate_key()
ROOT = Path(__file__).parents[3]
POSIX = os.name == "posix"


def sealer(environment: Environment, path: Path | None = None) -> Sealer | None:
    return Endpoint(environment=environment, key_file=path).sealer


def key_file(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)
    return path


# --- keys --------------------------------------------------------------------------------------------


def test_a_new_key_is_fernets() -> None:
    assert generate_key() != generate_key()
    assert Fernet(KEY).decrypt(Fernet(KEY).encrypt(b"x")) == b"x"


@pytest.mark.parametrize(
    "content",
    [KEY, f"{KEY}\n", f"\ufeff{KEY}\r\n", f"# mine\n\n{KEY}\n{OTHER}\n", f"{KEY},{OTHER}", f"  {KEY} \n"],
)
def test_a_key_file_however_it_was_written(tmp_path: Path, content: str) -> None:
    path = key_file(tmp_path / "key", content)
    keys = sealer(Environment(encryption_key=OTHER), path)
    assert keys is not None
    token = b"".join(keys.seal_chunks([b'{"a": 1}']))
    assert Fernet(KEY).decrypt(token) == b'{"a": 1}', "the file goes before the environment, its first key seals"


def test_the_environment_and_none() -> None:
    keys = sealer(Environment(encryption_key=KEY))
    assert keys is not None
    assert Fernet(KEY).decrypt(b"".join(keys.seal_chunks([b"1"]))) == b"1"
    assert sealer(Environment()) is None


@pytest.mark.skipif(not POSIX, reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_may_read_is_told_of(tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    path = key_file(tmp_path / "key", KEY, mode)
    assert sealed_jobs.read_key(path) == KEY
    assert caplog.messages == [f"{path} holds a key, and others on this machine may read it: chmod 600 {path}"]


@pytest.mark.parametrize("content", ["", "# nothing\n", "secret", f"{KEY}x", f"{KEY}\noops", b"\xff\xfe" * 30])
def test_what_is_no_key_is_told_without_it(tmp_path: Path, content: str | bytes) -> None:
    path = key_file(tmp_path / "key", content)
    with pytest.raises(UsageError) as error:
        sealer(Environment(), path)
    assert error.value.message.startswith(f"{path} holds no Fernet key")
    assert "settee-client keygen" in error.value.message
    assert KEY not in error.value.message
    assert "secret" not in error.value.message


def test_a_key_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        sealed_jobs.read_key(tmp_path / "key")
    with pytest.raises(UsageError, match="cannot be read"):
        sealed_jobs.read_key(tmp_path)
    with pytest.raises(UsageError, match="too large for a key file"):
        sealed_jobs.read_key(key_file(tmp_path / "key", "x" * 100_000))


def test_a_written_key_is_its_owners_and_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    assert keygen([str(path)], "keygen") == str(path)
    if POSIX:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first = path.read_text()
    assert sealer(Environment(), path) is not None
    for other, words in ((path, "exists already"), (tmp_path / "none" / "key", "cannot be written: No such file")):
        with pytest.raises(SystemExit, match="2"):
            keygen([str(other)], "keygen")
        assert words in capsys.readouterr().err
    assert path.read_text() == first


def test_a_sealer_shows_no_key() -> None:
    assert KEY not in repr(Sealer(KEY)) + str(Sealer(KEY))


# --- answers -----------------------------------------------------------------------------------------


def test_what_the_worker_sealed_opens() -> None:
    answer = {"status": "success", "images": [{"data": "A" * 100_000}], "texts": ["Grüße"]}
    output = closed(answer, WorkersSealer(KEY))
    assert output.keys() >= {"encrypted_output"}
    assert Sealer(f"{OTHER},{KEY}").opened(output) == answer


def test_an_error_keeps_its_own_words_under_the_seal() -> None:
    output = closed_error(ExecutionFailed("node 6: a private prompt"), WorkersSealer(KEY))
    assert "private" not in str(output)
    assert "a private prompt" in Sealer(KEY).opened(output)["error"]


def test_the_wrong_key_or_none() -> None:
    output = closed({"status": "success"}, WorkersSealer(KEY))
    with pytest.raises(UsageError) as error:
        Sealer(OTHER, origin="my.key").opened(output)
    assert error.value.message.startswith("the answer does not open with the key of my.key")
    with pytest.raises(UsageError, match="set ENCRYPTION_KEY, or give --key-file"):
        Endpoint(environment=Environment())._unsealed(output)
    with pytest.raises(UsageError, match="holds no result"):
        Sealer(KEY).opened(closed(["x"], WorkersSealer(KEY)))  # type: ignore[arg-type]


# --- files -------------------------------------------------------------------------------------------

PIECE = 3 << 17


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, PIECE - 57, PIECE - 56, PIECE, PIECE + 1, 3 * PIECE + 5, 2_000_000])
def test_a_sealed_file_opens_as_a_stream(tmp_path: Path, size: int) -> None:
    message = os.urandom(size)
    (tmp_path / "0000.sealed").write_bytes(b"".join(WorkersSealer(KEY).seal_chunks([message])))
    opened = io.BytesIO()
    Sealer(f"{OTHER},{KEY}").unseal(tmp_path / "0000.sealed", opened)
    assert opened.getvalue() == message


def test_stock_fernets_token_opens_as_a_stream(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(Fernet(KEY).encrypt(b"x" * 1000))
    opened = io.BytesIO()
    Sealer(KEY).unseal(tmp_path / "a", opened)
    assert opened.getvalue() == b"x" * 1000


def _token(size: int = 1_000_000) -> bytes:
    return b"".join(WorkersSealer(KEY).seal_chunks([bytes(size)]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a token",
        b"\xff" * 200,
        b"A" * 200,
        _token()[:-4],
        _token()[4:],
        _token()[:800_000] + b"AAAA" + _token()[800_004:],
        _token(10)[:20] + b"B" + _token(10)[21:],
        base64.urlsafe_b64encode(b"\x81" + base64.urlsafe_b64decode(_token(10))[1:]),
        Fernet(OTHER).encrypt(b"x"),
    ],
    ids=range(10),
)
def test_a_file_that_does_not_open_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0000.sealed").write_bytes(content)
    opened = io.BytesIO()
    with pytest.raises(UsageError, match="it does not open with the key of ENCRYPTION_KEY"):
        Sealer(KEY).unseal(tmp_path / "0000.sealed", opened)
    assert not opened.getvalue()


def test_what_a_sealed_job_put_on_s3_is_opened(tmp_path: Path) -> None:
    """Size and hash in the result are those of the file inside the token."""
    key, content = generate_key(), os.urandom(100_000)
    token = b"".join(WorkersSealer(key).seal_chunks([content]))
    with FileServer(token).running() as server:
        item = {
            "filename": "a.bin",
            "type": "s3_url",
            "data": f"http://127.0.0.1:{server.port}/0000.sealed?X-Amz-Signature=1",
        }
        known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        outputs = outputs_of({"files": [{**item, **known}]})
        (saved,) = Result("job", outputs, unseal=Sealer(key).unseal).save(tmp_path / "out")
        assert saved.path.read_bytes() == content
        wrong = Result("job", outputs, unseal=Sealer(generate_key()).unseal)
        with pytest.raises(UsageError, match="does not open with the key"):
            wrong.save(tmp_path / "other")
        assert not list((tmp_path / "other").iterdir())


# --- a machine without the worker's packages ---------------------------------------------------------

_BARE = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
from settee.base.sealing import generate_key, sealed_size
from settee.client import sealed_jobs
from settee.client.client_errors import UsageError
try:
    keys = sealed_jobs.Sealer(generate_key())
    token = b"".join(keys.seal_chunks([b'{"a": ', b'"\\xc3\\xbc"}']))
    print(keys.opened({"encrypted_output": token}), len(token) == sealed_size(11))
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("missing", "printed"),
    [
        ("orjson,pybase64,pydantic,boto3,requests,runpod,PIL", "{'a': 'ü'} True"),
        ("cryptography", "sealed jobs need one more package: pip install 'settee[sealed]'"),
    ],
)
def test_only_cryptography_is_needed(missing: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", _BARE, missing],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        encoding="utf-8",
    )
    assert done.stdout.strip() == printed
