"""From an entry to a whole file: the real huggingface_hub asks a Hub of our own, and the transfer engine fetches.

The Hub's large files lie on another host. Whatever goes wrong on the way, there is the right file at the end or none.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from settee.base.errors import DownloadFailed, IntegrityError, InvalidRequest, ModelMissing
from settee.base.threads import Stopped
from settee.models.entry import HubFile, ModelEntry, S3Object, WebFile
from settee.models.folder.checks import Hashes
from settee.models.sources import addresses
from settee.models.transfer.address import Address
from settee.models.transfer.download import download
from settee.models.transfer.scheduler import Scheduler
from settee.models.transfer.stream import Limits
from tests.support.delivering import bucket_settings, make_settings
from tests.support.hub import HubServer
from tests.support.s3 import S3Server
from tests.support.transferring import HASTY, KIB, SMALL, left, noise, sha256

DATA = noise(2_500_000)
SHA256 = sha256(DATA)
REPO = "org/model"
NAME = "unet/model.bin"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        server.add(REPO, NAME, DATA, lfs=True)
        server.tokens = {"hf_member": {REPO}, "hf_stranger": set()}
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "unet"
    folder.mkdir(parents=True)
    return folder / "model.bin"


class Place:
    """Asks the entry's places in order and downloads from the first that answers, as the store does."""

    def __init__(self, hub: HubServer, target: Path) -> None:
        self.hub = hub
        self.target = target

    def address(self, token: str | None = None, **changes: Any) -> Address:
        file = HubFile(REPO, changes.pop("filename", NAME), changes.pop("revision", "main"))
        entry = ModelEntry(changes.pop("source", file), "unet", "model.bin", **changes)
        settings = make_settings(hf_endpoint=self.hub.endpoint, hf_token=token)
        (origin,) = addresses(entry, settings)
        return origin.ask()

    def fetch(self, address: Address, *, stop_at: int | None = None, limits: Limits = SMALL) -> Hashes:
        """``stop_at``: give up once so many bytes are in place."""
        stop = threading.Event()

        def on_progress(done: int, total: int | None) -> None:
            if stop_at is not None and done >= stop_at:
                stop.set()

        return download(
            address,
            self.target,
            lane=Scheduler(8).lane(stop),
            deadline=time.monotonic() + 60,
            on_progress=on_progress,
            limits=limits,
        )

    def __call__(self, token: str | None = None, **changes: Any) -> Hashes:
        return self.fetch(self.address(token, **changes))


@pytest.fixture
def place(hub: HubServer, target: Path) -> Place:
    return Place(hub, target)


def assert_whole(target: Path, data: bytes = DATA) -> None:
    assert target.read_bytes() == data
    assert left(target.parent) == [target.name]


def assert_nothing(target: Path) -> None:
    assert not target.exists()
    assert not target.is_symlink()


def test_a_large_file_from_the_other_host_verified_and_without_a_token(
    place: Place, hub: HubServer, target: Path
) -> None:
    hub.repo(REPO, private=True)
    fetched = place("hf_member")
    assert_whole(target)
    assert (fetched.size, fetched.sha256) == (len(DATA), SHA256)
    assert hub.authorizations() == {"hub": {"Bearer hf_member"}, "cdn": {None}}
    # One question to the Hub; every byte once, by ranges, from the other host.
    assert hub.counts() == {"hub HEAD": 1, "cdn GET": 10}
    assert hub.served == len(DATA)


def test_a_large_file_from_the_hub_itself_goes_with_the_token(place: Place, hub: HubServer, target: Path) -> None:
    hub.repo(REPO, private=True)
    hub.redirects = False
    assert place("hf_member").sha256 == SHA256
    assert_whole(target)
    assert hub.authorizations()["hub"] == {"Bearer hf_member"}
    assert hub.counts()["cdn GET"] == 0


def test_a_small_file_of_git(place: Place, hub: HubServer, target: Path) -> None:
    hub.add(REPO, "tiny.bin", b"8 bytes!")
    hub.repo(REPO, private=True)
    fetched = place("hf_member", filename="tiny.bin")
    assert_whole(target, b"8 bytes!")
    assert fetched.size == 8


@pytest.mark.parametrize("revision", ["feature/new", "v1.0"])
def test_revisions(place: Place, hub: HubServer, target: Path, revision: str) -> None:
    other = noise(700_000, b"other")
    hub.add(REPO, NAME, other, revision=revision, lfs=True)
    place(revision=revision)
    assert_whole(target, other)
    place(revision=hub.commit(REPO))
    assert_whole(target)


def test_gated_and_private_leave_nothing(place: Place, hub: HubServer, target: Path) -> None:
    hub.repo(REPO, gated=True)
    for token in (None, "hf_stranger"):
        with pytest.raises(DownloadFailed, match="is gated: accept its licence at"):
            place(token)
    hub.repo(REPO, private=True)
    for token in (None, "hf_stranger"):
        with pytest.raises(ModelMissing, match="HF_TOKEN"):
            place(token)
    assert hub.served == 0
    assert list(target.parent.iterdir()) == []
    hub.repo(REPO, gated=True)
    place("hf_member")
    assert_whole(target)


def test_a_token_that_is_withdrawn_meanwhile(place: Place, hub: HubServer, target: Path) -> None:
    hub.repo(REPO, private=True)
    hub.redirects = False
    address = place.address("hf_member")
    hub.tokens["hf_member"] = set()
    with pytest.raises((DownloadFailed, ModelMissing)) as caught:
        place.fetch(address)
    assert not caught.value.retryable
    assert "hf_member" not in json.dumps([caught.value.message, caught.value.details])
    assert_nothing(target)


def test_links_that_expire_are_asked_for_again(place: Place, hub: HubServer, target: Path) -> None:
    address = place.address()
    hub.expire()
    assert place.fetch(address).sha256 == SHA256
    assert_whole(target)
    assert hub.counts()["hub HEAD"] == 2
    assert hub.served < len(DATA) + 10 * KIB


def test_a_branch_that_moves_on_meanwhile(place: Place, hub: HubServer, target: Path) -> None:
    """What was asked about is fetched, also with a link that had to be renewed."""
    address = place.address()
    hub.add(REPO, NAME, noise(900_000, b"new"), lfs=True)
    hub.expire()
    place.fetch(address)
    assert_whole(target)


# --- Bodies that are wrong -------------------------------------------------------------------------------


def test_a_corrupt_body_of_the_right_size_is_fetched_once_more(place: Place, hub: HubServer, target: Path) -> None:
    hub.faults.corrupt_at = 1_234_567
    assert place().sha256 == SHA256
    assert_whole(target)


def test_a_body_that_stays_corrupt_fails_with_both_hashes(place: Place, hub: HubServer, target: Path) -> None:
    hub.faults.corrupt_at, hub.faults.corrupt_times = 1_234_567, 99
    wrong = bytearray(DATA)
    wrong[1_234_567] ^= 0xFF
    with pytest.raises(IntegrityError) as caught:
        place()
    for digest in (SHA256, sha256(bytes(wrong))):
        assert digest in caught.value.message
    assert "Signature" not in json.dumps([caught.value.message, caught.value.details])
    assert list(target.parent.iterdir()) == []


def test_a_hash_that_the_entry_gives_for_a_file_of_git(place: Place, hub: HubServer, target: Path) -> None:
    """The Hub knows no sha256 of it, so the bytes tell."""
    hub.add(REPO, "vae.bin", DATA, lfs=False)
    place(filename="vae.bin", sha256=SHA256)
    assert_whole(target)
    target.unlink()
    with pytest.raises(IntegrityError, match=SHA256):
        place(filename="vae.bin", sha256="0" * 64)
    assert list(target.parent.iterdir()) == []


def test_without_ranges(place: Place, hub: HubServer, target: Path) -> None:
    hub.faults.ranges = False
    assert place().sha256 == SHA256
    assert_whole(target)
    # Nothing is fetched twice but what a first range's answer brought.
    assert hub.served < 2 * len(DATA)


def test_without_ranges_and_without_lengths(place: Place, hub: HubServer, target: Path) -> None:
    hub.faults.ranges = hub.faults.lengths = False
    assert place().sha256 == SHA256
    assert_whole(target)


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "one body"])
@pytest.mark.parametrize("tenth", range(10))
def test_cut_at_every_tenth(place: Place, hub: HubServer, target: Path, tenth: int, ranges: bool) -> None:
    """And at the bytes beside it."""
    at = len(DATA) * tenth // 10
    hub.faults.ranges = ranges
    hub.faults.cuts = {offset for offset in (at - 1, at, at + 1) if offset >= 0}
    assert place().sha256 == SHA256
    assert_whole(target)
    assert not hub.faults.cuts
    if ranges:
        # No byte is fetched twice but what lay in a socket when it was reset.
        assert hub.served < len(DATA) + 3 * SMALL.range_bytes


def test_cut_at_all_tenths_of_one_download(place: Place, hub: HubServer, target: Path) -> None:
    hub.faults.cuts = {len(DATA) * tenth // 10 for tenth in range(10)}
    assert place().sha256 == SHA256
    assert_whole(target)
    assert not hub.faults.cuts


def test_a_server_that_falls_silent_in_the_middle(place: Place, hub: HubServer, target: Path) -> None:
    hub.faults.stall_at = len(DATA) // 2
    assert place.fetch(place.address(), limits=HASTY).sha256 == SHA256
    assert_whole(target)


def test_a_server_that_wants_patience(place: Place, hub: HubServer, target: Path) -> None:
    hub.faults.next_answers = [(503, {"Retry-After": "0"}), (429, {}), (500, {}), (502, {})]
    assert place().sha256 == SHA256
    assert_whole(target)


def test_what_is_in_place_is_not_fetched_again(place: Place, hub: HubServer, target: Path) -> None:
    """The second worker takes up the first one's part, though its link is another one."""
    hub.faults.rate = 10e6
    address = place.address()
    with pytest.raises(Stopped):
        place.fetch(address, stop_at=len(DATA) // 2)
    assert_nothing(target)
    before = hub.served
    assert len(DATA) // 2 <= before < len(DATA)
    hub.expire()
    hub.faults.rate = None
    assert place().sha256 == SHA256
    assert_whole(target)
    assert hub.served < len(DATA) + 4 * SMALL.range_bytes


def test_what_only_the_library_can_fetch(
    place: Place, hub: HubServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Xet switched off in it, for there is no Xet storage here; by another way than our requests all the same."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.add(REPO, NAME, DATA, lfs=True, xet=True)
    hub.repo(REPO, private=True)
    hub.faults.library_only = True
    assert place("hf_member").sha256 == SHA256
    assert_whole(target)
    assert hub.authorizations()["cdn"] == set()


# --- Other sources ---------------------------------------------------------------------------------------


def test_a_url_that_redirects_elsewhere_takes_no_token_along(place: Place, hub: HubServer, target: Path) -> None:
    hub.tokens["t0ken"] = {REPO}
    hub.repo(REPO, private=True)
    url = WebFile(f"{hub.endpoint}/{REPO}/resolve/main/{NAME}?download=true")
    entry = ModelEntry(url, "unet", "model.bin", token=SecretStr("t0ken"))
    (origin,) = addresses(entry, make_settings())
    place.fetch(origin.ask())
    assert_whole(target)
    assert hub.authorizations() == {"hub": {"Bearer t0ken"}, "cdn": {None}}


def test_a_jobs_url_on_this_host_is_refused(place: Place, hub: HubServer, target: Path) -> None:
    with pytest.raises(InvalidRequest):
        place(source=WebFile(f"{hub.endpoint}/{REPO}/resolve/main/{NAME}"), from_job=True)
    assert hub.asked() == []
    assert_nothing(target)


def test_from_s3_and_from_the_mirror(s3: S3Server, hub: HubServer, target: Path) -> None:
    bucket = s3.make_bucket()
    s3.admin.put_object(Bucket=bucket, Key="a b/ü.bin", Body=DATA, Metadata={"sha256": SHA256})
    s3.admin.put_object(Bucket=bucket, Key="mirror/unet/model.bin", Body=DATA)
    place = Place(hub, target)
    settings = bucket_settings(s3, None, models_mirror=f"s3://{bucket}/mirror", hf_endpoint=hub.endpoint)
    (own,) = addresses(ModelEntry(S3Object(bucket, "a b/ü.bin"), "unet", "model.bin"), settings)
    assert place.fetch(own.ask()).sha256 == SHA256
    assert_whole(target)
    target.unlink()
    mirror, _ = addresses(ModelEntry(HubFile(REPO, NAME), "unet", "model.bin"), settings)
    assert place.fetch(mirror.ask()).sha256 is None
    assert_whole(target)
    assert hub.asked() == []
