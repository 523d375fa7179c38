"""Sealing: every token opens with stock Fernet, and nothing but the right token opens here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cryptography.fernet import Fernet, MultiFernet
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import ConfigError, SealBroken
from settee.base.sealing import Sealer, generate_key, sealed_size

KEY = Fernet.generate_key().decode()


def test_what_is_sealed_opens_here_and_with_stock_fernet() -> None:
    value = {"images": [{"data": "A" * 1_000_000}], "text": "Grüße, 世界 🙂", "n": [1, 2.5, None, True]}
    token = Sealer(KEY).seal(value)
    assert Sealer(KEY).open(token) == value
    assert json.loads(Fernet(KEY).decrypt(token)) == value


def test_what_stock_fernet_sealed_opens() -> None:
    token = Fernet(KEY).encrypt(json.dumps({"workflow": {"1": {}}}).encode())
    assert Sealer(KEY).open(token) == {"workflow": {"1": {}}}
    assert Sealer(KEY).open(token.decode()) == {"workflow": {"1": {}}}


@given(st.lists(st.binary(max_size=100), max_size=8))
def test_a_stream_of_any_chunks_is_one_token_of_the_promised_size(chunks: list[bytes]) -> None:
    message = b"".join(chunks)
    token = b"".join(Sealer(KEY).seal_chunks(iter(chunks)))
    assert Fernet(KEY).decrypt(token) == message
    assert len(token) == sealed_size(len(message)) == len(Fernet(KEY).encrypt(message))


def test_two_tokens_of_one_message_differ() -> None:
    assert Sealer(KEY).seal("x") != Sealer(KEY).seal("x")


def test_the_first_key_seals_and_all_open() -> None:
    old, new = generate_key(), generate_key()
    rotated = Sealer(f" {new} , {old},")
    assert rotated.open(Sealer(old).seal(1)) == 1
    assert Sealer(new).open(rotated.seal(2)) == 2
    with pytest.raises(SealBroken):
        Sealer(old).open(rotated.seal(3))
    assert MultiFernet([Fernet(old), Fernet(new)]).decrypt(rotated.seal(4)) == b"4"


def _flipped(token: str, position: int) -> str:
    return token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]


@pytest.mark.parametrize("position", [0, 5, 20, 60, -5])
def test_a_token_changed_anywhere_does_not_open(position: int) -> None:
    token = Sealer(KEY).seal({"a": "b" * 50})
    with pytest.raises(SealBroken):
        Sealer(KEY).open(_flipped(token, position % len(token)))


@pytest.mark.parametrize(
    "token",
    ["", "x", "not a token", "ä" * 40, b"\xff\xfe", "A" * 200, Fernet(generate_key()).encrypt(b"{}"), None, 7, {}, []],
)
def test_anything_else_is_refused_in_the_same_words(token: object) -> None:
    with pytest.raises(SealBroken) as error:
        Sealer(KEY).open(token)  # type: ignore[arg-type]
    assert error.value.message == SealBroken().message
    assert error.value.details == {}
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"NaN", b"[" * 100_000, b'"\\ud800"'])
def test_a_token_without_json_in_it_is_refused(content: bytes) -> None:
    with pytest.raises(SealBroken):
        Sealer(KEY).open(Fernet(KEY).encrypt(content))


def test_file_names_that_are_not_utf8_survive() -> None:
    value = {"filename": "bad\udcff.png"}
    assert json.loads(Fernet(KEY).decrypt(Sealer(KEY).seal(value))) == value


@pytest.mark.parametrize("keys", ["", " , ", "short", "x" * 44, KEY[:-1], KEY + KEY, "é" * 44, f"{KEY},oops"])
def test_a_key_that_is_none_is_a_clear_error_without_the_key(keys: str) -> None:
    with pytest.raises(ConfigError) as error:
        Sealer(keys)
    assert "ENCRYPTION_KEY" in error.value.message
    assert "python -m settee keygen" in error.value.message
    assert not any(
        key and key in str([error.value.message, error.value.details]) for key in keys.replace(" ", "").split(",")
    )


def test_the_command_that_the_error_names_makes_a_key() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "settee", "keygen"], capture_output=True, text=True, check=True, timeout=60
    )
    assert Sealer(made.stdout.strip()).open(Sealer(made.stdout.strip()).seal("works")) == "works"


def test_a_sealer_shows_no_key() -> None:
    assert KEY not in repr(Sealer(KEY)) + str(Sealer(KEY))
