"""Delivery without S3: base64, text, the platform's cap, and every way to end early."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import DeliveryError, JobCanceled, JobTimeout, OutputMissing, OutputTooLarge
from settee.base.job import Artifact, Cancel, Job, Kind, Output
from settee.base.sealing import Sealer
from settee.delivery import plan
from settee.delivery.blob import CHUNK
from tests.support.delivering import file_artifact, make_job, make_settings, only, run, text_artifact, write

KEY = Fernet.generate_key().decode()
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAUAAAADCAIAAADUVFKvAAAAEElEQVR4nGNgYPiPjhhoJwIAw6QO8lV5rmwAAAAASUVORK5CYII="
)


# --- base64 and text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 3, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 2])
@pytest.mark.parametrize("source", ["path", "content", "fetch"])
def test_base64_of_any_size_from_any_source(tmp_path: Path, size: int, source: str) -> None:
    content = os.urandom(size)
    artifact = file_artifact(write(tmp_path / "a.bin", content))
    if source == "content":
        artifact = dataclasses.replace(artifact, path=None, content=content)
    if source == "fetch":
        artifact = dataclasses.replace(artifact, path=None)
    pieces = [content[start : start + 100_001] for start in range(0, size, 100_001)]
    output = only(run([artifact], make_job("base64"), make_settings(), fetch=lambda wanted: iter(pieces)))
    assert base64.b64decode(output.data or "", validate=True) == content
    assert (output.type, output.size, output.url) == ("base64", size, None)
    assert output.sha256 == hashlib.sha256(content).hexdigest()


def test_outputs_keep_the_order_and_the_description_of_their_artifacts(tmp_path: Path) -> None:
    artifacts = [
        file_artifact(write(tmp_path / "b.png", PNG), node_id="57:8", subfolder="x/y"),
        text_artifact("Grüße\n世界"),
        file_artifact(write(tmp_path / "a.mp4", b"film"), node_id="3"),
    ]
    outputs = run(artifacts, make_job(), make_settings()).outputs
    assert [output.filename for output in outputs] == ["b.png", "5.txt", "a.mp4"]
    picture, text, film = outputs
    assert (picture.node_id, picture.subfolder, picture.kind) == ("57:8", "x/y", Kind.IMAGE)
    assert (picture.width, picture.height) == (5, 3)
    assert (text.type, text.data, text.size) == ("text", "Grüße\n世界", len("Grüße\n世界".encode()))
    assert (film.kind, film.media_type, film.width) == (Kind.VIDEO, "video/mp4", None)


def test_a_text_file_is_a_file(tmp_path: Path) -> None:
    output = only(run([file_artifact(write(tmp_path / "a.txt", b"saved"))], make_job(), make_settings()))
    assert (output.kind, output.type, output.data) == (Kind.TEXT, "base64", base64.b64encode(b"saved").decode())


def test_a_fetched_image_has_its_size_too(tmp_path: Path) -> None:
    artifact = file_artifact(write(tmp_path / "a.png", PNG), path=None)
    output = only(run([artifact], make_job(), make_settings(), fetch=lambda wanted: iter([PNG])))
    assert (output.width, output.height) == (5, 3)


def test_nothing_to_deliver() -> None:
    assert run([], make_job(), make_settings()) == ((), ())


def test_progress_counts_outputs_and_ends_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    artifacts = [file_artifact(write(tmp_path / f"{n}.bin", bytes(n))) for n in (10, 20, 30)]
    run(artifacts, make_job(), make_settings(), notify=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# --- files that are not what they should be ----------------------------------------------------------


def test_a_file_that_is_gone_fails_the_job(tmp_path: Path) -> None:
    with pytest.raises(OutputMissing) as error:
        run([file_artifact(tmp_path / "gone.png")], make_job(), make_settings())
    assert error.value.details == {"filename": "gone.png", "node_id": "9"}
    assert str(tmp_path) not in str([error.value.message, error.value.details])


def test_a_link_is_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "secret.txt", b"secret")
    (tmp_path / "out.png").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(OutputMissing):
        run([file_artifact(tmp_path / "out.png")], make_job(), make_settings())


def test_what_is_no_plain_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(OutputMissing, match="is not a file"):
            run([file_artifact(tmp_path / name)], make_job(), make_settings())


@pytest.mark.parametrize("sent", [b"", b"123", b"12345"])
def test_a_transfer_that_is_cut_short_fails_the_job(tmp_path: Path, sent: bytes) -> None:
    artifact = file_artifact(write(tmp_path / "a.bin", b"1234"), path=None)
    with pytest.raises(DeliveryError, match=f"sent {len(sent)} of the 4 bytes") as error:
        run([artifact], make_job(), make_settings(), fetch=lambda wanted: iter([sent]))
    assert error.value.retryable


def test_what_fetching_raises_comes_through(tmp_path: Path) -> None:
    def fetch(artifact: Artifact) -> Iterator[bytes]:
        yield b"12"
        raise OutputMissing("gone from /view")

    with pytest.raises(OutputMissing, match="gone from /view"):
        run([file_artifact(write(tmp_path / "a.bin", b"1234"), path=None)], make_job(), make_settings(), fetch=fetch)


# --- cancel and deadline -----------------------------------------------------------------------------


def test_a_cancel_stops_between_chunks(tmp_path: Path) -> None:
    with Cancel() as cancel:

        def fetch(artifact: Artifact) -> Iterator[bytes]:
            yield bytes(10)
            cancel.set()
            yield bytes(10)
            raise AssertionError("read on after the cancel")

        artifact = file_artifact(write(tmp_path / "a.bin", bytes(30)), path=None)
        with pytest.raises(JobCanceled):
            run([artifact], make_job(), make_settings(), fetch=fetch, cancel=cancel)


def test_the_deadline_holds_while_delivering(tmp_path: Path) -> None:
    with pytest.raises(JobTimeout):
        run([file_artifact(write(tmp_path / "a.bin", b"x"))], make_job(), make_settings(), seconds=-1)


# --- the cap -----------------------------------------------------------------------------------------


def as_body(outputs: tuple[Output, ...], warnings: tuple[str, ...]) -> dict[str, object]:
    """The answer as a door writes it."""
    files = [
        {key: value for key, value in dataclasses.asdict(output).items() if value is not None} for output in outputs
    ]
    return {"output": {"status": "success", "images": files, "warnings": list(warnings), "timings": {"total": 1.5}}}


def test_over_the_cap_and_nowhere_to_go_fails_with_what_to_set(tmp_path: Path) -> None:
    artifacts = [file_artifact(write(tmp_path / f"{n}.bin", bytes(n * 1000))) for n in (1, 50, 30)]
    with pytest.raises(OutputTooLarge) as error:
        run(artifacts, make_job(max_result_bytes=60_000), make_settings())
    for name in ("BUCKET_ENDPOINT_URL", "BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY", "RESULT_VOLUME_DIR"):
        assert name in error.value.message
        assert name in error.value.details["settings"]
    assert [file["size"] for file in error.value.details["files"]] == [1000, 50_000, 30_000]
    assert error.value.details["cap_bytes"] == 60_000
    assert error.value.details["result_bytes"] > 81_000 * 4 / 3


def test_the_cap_is_seen_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(OutputTooLarge):
        run([file_artifact(path)], make_job(max_result_bytes=10_000_000), make_settings())


def test_a_file_of_unknown_size_is_measured_not_trusted(tmp_path: Path) -> None:
    artifact = file_artifact(write(tmp_path / "a.bin", b""), path=None, size=-1)
    with pytest.raises(OutputTooLarge) as error:
        run([artifact], make_job(max_result_bytes=50_000), make_settings(), fetch=lambda wanted: iter([bytes(90_000)]))
    assert error.value.details["files"][0]["size"] == 90_000
    output = only(
        run([artifact], make_job(max_result_bytes=50_000), make_settings(), fetch=lambda wanted: iter([b"12"]))
    )
    assert output.size == 2


def test_a_file_of_unknown_size_that_fits_is_fetched_once(tmp_path: Path) -> None:
    fetched = []

    def fetch(artifact: Artifact) -> Iterator[bytes]:
        fetched.append(artifact.filename)
        yield PNG[:20]
        yield PNG[20:]

    artifacts = [file_artifact(tmp_path / f"{n}.png", path=None, size=0) for n in range(3)]
    outputs = run(artifacts, make_job(max_result_bytes=50_000), make_settings(), fetch=fetch).outputs
    assert fetched == ["0.png", "1.png", "2.png"]
    assert {(output.width, output.height, output.data) for output in outputs} == {
        (5, 3, base64.b64encode(PNG).decode())
    }


def test_conversion_counts_before_the_cap_does(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "flat.png"
    Image.new("RGB", (600, 600)).save(path, compress_level=0)
    job = make_job({"mode": "base64", "image_format": "webp"}, max_result_bytes=50_000)
    assert path.stat().st_size > 1_000_000
    assert only(run([file_artifact(path)], job, make_settings())).filename == "flat.webp"


TEXTS = st.text(st.characters(exclude_categories=()), max_size=80)


@given(
    st.lists(st.tuples(st.integers(0, 4000), TEXTS, TEXTS), max_size=5),
    st.lists(TEXTS, max_size=4),
    st.booleans(),
)
def test_the_estimate_is_never_below_the_real_answer(
    files: list[tuple[int, str, str]], texts: list[str], sealed: bool
) -> None:
    artifacts = [
        Artifact(
            node_id=node or "1",
            kind=Kind.FILE,
            filename=name or "a",
            subfolder=name,
            media_type="application/octet-stream",
            size=size,
            content=bytes(size),
        )
        for size, name, node in files
    ] + [text_artifact(text) for text in texts]
    config, key = make_settings(), KEY if sealed else None

    def body_bytes(job: Job) -> int:
        answer = as_body(*run(artifacts, job, config))
        if sealed:
            answer = {"output": {"encrypted_output": Sealer(KEY).seal(answer)}}
        return len(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass"))

    real = body_bytes(make_job(sealed_by=key))
    with pytest.raises(OutputTooLarge):
        run(artifacts, make_job(sealed_by=key, max_result_bytes=real - 1), config)
    generous = real + 2 * plan.BODY * 4 // 3 + 2 * (len(artifacts) + 1) * (plan.ENTRY + 700)
    assert body_bytes(make_job(sealed_by=key, max_result_bytes=generous)) <= generous
