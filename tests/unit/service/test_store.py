"""The store's file: transactions, migrations, journals, idempotency keys, and what becomes of a damaged file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import ConfigError
from settee.base.job import Status
from settee.service import store_schema, timestamps
from settee.service.store import FILE, MAX_KEYS, MAX_REFUSED, Attempt, Callback, Ending, Store, StoreError
from settee.service.store_schema import journal_mode


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state")
    store.open()
    yield store
    store.close()


def attempt(number: int = 1, job_id: str = "job") -> Attempt:
    return Attempt(id=f"attempt {number}", job_id=job_id, started_at=timestamps.now())


def ending(state: Status = Status.FAILED) -> Ending:
    return Ending(state=state, moment=timestamps.now(), number=1, shown={})


def callback(key: str, number: int = 1) -> Callback:
    return Callback(attempt_id=f"attempt {number}", job_id="job", key=key, url="http://host/", body=b"{}")


def reopened(store: Store) -> Store:
    store.close()
    store.open()
    return store


class TestKeys:
    def test_they_survive_a_restart_without_being_told(self, store: Store, tmp_path: Path) -> None:
        store.accept(attempt(), "a secret of its caller's", "digest")
        assert reopened(store).known_key("a secret of its caller's") == ("digest", "job")
        assert store.known_key("another") is None
        assert b"secret of its" not in store.path.read_bytes()

    def test_the_oldest_go(self, store: Store) -> None:
        store.accept(attempt(0), "0", "digest")
        with store._transaction() as db:
            db.executemany(
                "INSERT INTO idempotency_keys (key_hash, digest, job_id) VALUES (?, '', '')",
                [(str(number),) for number in range(MAX_KEYS - 1)],
            )
        assert store.known_key("0") is not None
        store.accept(attempt(1), "1", "digest")
        assert [store.known_key(key) is not None for key in "01"] == [False, True]

    def test_a_job_that_never_began_gives_its_key_back(self, store: Store) -> None:
        store.accept(attempt(1), "first", "digest")
        store.end("attempt 1", ending())
        store.accept(attempt(2), "second", "digest")
        store.end("attempt 2", ending(), forget_key=True)
        assert [store.known_key(key) is not None for key in ("first", "second")] == [True, False]

    def test_a_job_and_its_key_are_one_step(self, store: Store) -> None:
        store.accept(attempt(1), "a key", "digest")
        with pytest.raises(StoreError):
            store.accept(attempt(1), "another key", "digest")  # the id of an attempt is there once
        assert store.known_key("another key") is None


class TestEnds:
    def test_an_end_and_its_callbacks_are_one_step(self, store: Store) -> None:
        store.accept(attempt())
        assert store._db is not None
        store._db.execute("CREATE TRIGGER full BEFORE INSERT ON callbacks BEGIN SELECT RAISE(ABORT, 'full'); END")
        with pytest.raises(StoreError):
            store.end("attempt 1", ending(), callback("job-FAILED"))
        assert [each.id for each in store.running()] == ["attempt 1"]
        store._db.execute("DROP TRIGGER full")
        stored = store.end("attempt 1", ending(), callback("job-FAILED"))
        assert stored is not None
        assert [each.id for each in store.callbacks()] == [stored.id]
        assert store.running() == []

    def test_the_same_callback_is_stored_once(self, store: Store) -> None:
        """The disk took it, and the answer was lost."""
        store.accept(attempt())
        first, second = (store.end("attempt 1", ending(), callback("job-FAILED")) for _ in range(2))
        assert first is not None
        assert first == second

    def test_an_old_sqlite_knows_every_word(self, store: Store) -> None:
        said: list[str] = []
        store.accept(attempt())
        assert store._db is not None
        store._db.set_trace_callback(said.append)
        assert store.end("attempt 1", ending(), callback("job-FAILED"), forget_key=True)
        assert said
        assert not [each for each in said if "RETURNING" in each]  # 3.35

    def test_a_job_id_that_comes_again_is_counted(self, store: Store) -> None:
        for number in range(3):
            store.accept(attempt(number))
            store.end(f"attempt {number}", ending())
        with store._transaction(is_read=True) as db:
            assert db.execute("SELECT MAX(run_count) FROM attempts WHERE job_id = 'job'").fetchone()[0] == 3

    def test_times_compare_with_sqlites_own(self, store: Store) -> None:
        store.accept(attempt())
        with store._transaction(is_read=True) as db:
            recent = "started_at BETWEEN datetime('now', '-1 minute') AND datetime('now', '+1 minute')"
            assert db.execute(f"SELECT COUNT(*) FROM attempts WHERE {recent}").fetchone()[0] == 1

    def test_refused_ones_are_kept_up_to_a_number(self, store: Store) -> None:
        with store._transaction() as db:
            db.executemany(
                "INSERT INTO callbacks (attempt_id, job_id, key, url, body, refused_at) "
                "VALUES (?, '', '', '', '', CURRENT_TIMESTAMP)",
                [(str(number),) for number in range(MAX_REFUSED)],
            )
        stored = store.end("attempt 1", ending(), callback("job-FAILED"))
        assert stored is not None
        store.failed(stored.id, "HTTP 404", is_refused=True)
        kept = store.callbacks(is_refused=True)
        assert (len(kept), kept[-1].last_error) == (MAX_REFUSED, "HTTP 404")


class TestFile:
    def test_one_that_is_damaged_is_set_aside(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / FILE).write_bytes(b"not a database, but longer than its header, which is a hundred bytes " * 9)
        store = Store(tmp_path)
        store.open()
        store.accept(attempt())
        store.close()
        assert [path.name.startswith(f"{FILE}.damaged-") for path in sorted(tmp_path.glob(f"{FILE}.*"))] == [True]
        assert "damaged" in caplog.text

    def test_one_of_a_newer_version_is_left_alone(self, store: Store, tmp_path: Path) -> None:
        assert store._db is not None
        store._db.execute("PRAGMA user_version=99")
        store.close()
        with pytest.raises(ConfigError, match="newer version"):
            store.open()

    def test_a_kill_within_a_migration_leaves_the_version_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(tmp_path)
        store.open()
        store.accept(attempt())
        store.close()
        broken = (*store_schema._MIGRATIONS, ("CREATE TABLE more (id)", "NO SQL"))
        with monkeypatch.context() as patched:
            patched.setattr(store_schema, "_MIGRATIONS", broken)
            with pytest.raises(ConfigError):
                store.open()
        store.open()
        assert [each.id for each in store.running()] == ["attempt 1"]
        with store._transaction(is_read=True) as db:
            assert db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'more'").fetchone()[0] == 0
        store.close()

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / FILE).symlink_to(tmp_path / "theirs")
        with pytest.raises(ConfigError):
            Store(tmp_path / "state").open()
        assert not (tmp_path / "theirs").exists()

    def test_a_command_needs_a_file_and_no_lock(self, store: Store, tmp_path: Path) -> None:
        other = Store(tmp_path / "state")
        other.open(exclusive=False)
        assert other.callbacks() == []
        other.close()
        with pytest.raises(ConfigError):
            Store(tmp_path / "nowhere").open(exclusive=False)
        assert not (tmp_path / "nowhere").exists()

    def test_another_process_makes_it_wait(self, store: Store) -> None:
        other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        import threading

        threading.Timer(0.3, lambda: other.execute("COMMIT")).start()
        store.accept(attempt())
        assert len(store.running()) == 1
        other.close()

    def test_everything_is_on_the_disk_on_return(self, store: Store) -> None:
        assert store._db is not None
        assert store._db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


@pytest.mark.parametrize(
    ("version", "is_safe"),
    [
        ((3, 40, 1), False), ((3, 44, 5), False), ((3, 44, 6), True), ((3, 45, 0), False), ((3, 50, 6), False),
        ((3, 50, 7), True), ((3, 51, 2), False), ((3, 51, 3), True), ((3, 52, 0), True),
    ],
)  # fmt: skip
def test_wal_only_where_it_is_safe(
    version: tuple[int, ...], is_safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_schema, "_is_local", lambda folder: True)
    assert journal_mode(tmp_path, version) == ("WAL" if is_safe else "TRUNCATE")
    monkeypatch.setattr(store_schema, "_is_local", lambda folder: False)
    assert journal_mode(tmp_path, version) == "TRUNCATE"


@pytest.mark.parametrize(
    ("mounts", "is_local"),
    [
        ("/dev/a / ext4 rw 0 0\n", True),
        ("/dev/a / ext4 rw 0 0\nserver:/x {folder} nfs4 rw 0 0\n", False),
        ("server:/x / nfs4 rw 0 0\n/dev/b {folder} xfs rw 0 0\n", True),
        ("", False),
    ],
)
def test_which_disks_are_local(mounts: str, is_local: bool, tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    folder.mkdir()
    table = tmp_path / "mounts"
    table.write_text(mounts.format(folder=str(folder).replace(" ", "\\040")))
    assert store_schema._is_local(folder / "state", table) is is_local


def test_a_number_that_only_others_change(store: Store) -> None:
    before = store.changes()
    store.accept(attempt())
    assert store.changes() == before
    other: Any = Store(store.path.parent)
    other.open(exclusive=False)
    other.set_leftovers(["a"])
    other.close()
    assert store.changes() != before
