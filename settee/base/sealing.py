"""End-to-end encryption of payloads and results, in the format that every language has a library for: Fernet.

A token is ``base64url(0x80 | time | IV | AES-128-CBC ciphertext | HMAC-SHA256)`` (github.com/fernet/spec). It is
written and opened as a stream, with the primitives of ``cryptography``: its own ``Fernet.encrypt`` holds a message six
times over, and a result or a film does not fit in memory that often. The whole token is checked before a byte is
decrypted.

"""

from __future__ import annotations

import argparse
import base64
import hmac
import io
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from settee.base.errors import ConfigError, SealBroken
from settee.base.json_io import dumps, fast_base64, loads_strict
from settee.base.text import join_ascii

_HEADER = 1 + 8 + 16  # version, seconds since 1970 (big-endian), IV
_HMAC = 32
_BLOCK = 16
_CHUNK = 3 << 17


def generate_key() -> str:
    """Return a new key for ENCRYPTION_KEY."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def sealed_size(size: int) -> int:
    """Return the bytes of the token for a message of ``size`` bytes."""
    ciphertext = (size // _BLOCK + 1) * _BLOCK  # PKCS #7 pads a full block too
    return 4 * -(-(_HEADER + ciphertext + _HMAC) // 3)


class Writes(Protocol):
    """A file that takes bytes."""

    def write(self, data: bytes, /) -> object: ...


class Sealer:
    """Opens what the keys' holders sealed, and seals with the first key.

    ``keys``: Fernet keys, comma-separated, newest first; the older ones only open. Raises ConfigError.
    """

    def __init__(self, keys: str) -> None:
        self._keys = [key.strip() for key in keys.split(",") if key.strip()]
        if not self._keys:
            raise ConfigError("ENCRYPTION_KEY is empty: make a key with `python -m settee keygen`")
        for number, key in enumerate(self._keys, 1):
            if not _is_key(key):
                which = f"key {number} of {len(self._keys)} in " if len(self._keys) > 1 else ""
                raise ConfigError(
                    f"{which}ENCRYPTION_KEY is not a Fernet key (32 bytes in url-safe base64, 44 characters): "
                    "make one with `python -m settee keygen`"
                )

    def __repr__(self) -> str:
        return f"Sealer({len(self._keys)} keys)"

    def open(self, token: str | bytes) -> Any:
        """Return the JSON value inside a token. Raises SealBroken, which never states what exactly was wrong."""
        content = io.BytesIO()
        try:
            token = token.strip()
            source = io.BytesIO(token.encode("ascii") if isinstance(token, str) else bytes(token))
            del token
            self.open_file(source, content)
            return loads_strict(content.getvalue())
        except (ValueError, TypeError, AttributeError, RecursionError):
            # `from None`: the cause may quote the payload.
            raise SealBroken from None

    def seal(self, value: Any) -> str:
        """Return a token around a JSON value. Needs memory for its JSON and for the token, once each."""
        data = memoryview(dumps(value))
        slices = (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
        return join_ascii(str(piece, "ascii") for piece in self.seal_chunks(slices))

    def seal_chunks(self, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
        """Give the token for a message that arrives in chunks, in pieces; together they are ``sealed_size`` bytes."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.hmac import HMAC
        from cryptography.hazmat.primitives.padding import PKCS7

        key = base64.urlsafe_b64decode(self._keys[0])
        iv = os.urandom(16)
        mac = HMAC(key[:16], SHA256())
        cipher = Cipher(algorithms.AES(key[16:]), modes.CBC(iv)).encryptor()
        padder = PKCS7(_BLOCK * 8).padder()

        def parts() -> Iterator[bytes]:
            yield b"\x80" + int(time.time()).to_bytes(8, "big") + iv
            for chunk in chunks:
                yield cipher.update(padder.update(chunk))
            yield cipher.update(padder.finalize()) + cipher.finalize()

        encode, rest = fast_base64().b64encode, b""
        for part in parts():
            mac.update(part)
            part = rest + part
            whole = len(part) - len(part) % 3  # base64 turns 3 bytes into 4 characters
            rest = part[whole:]
            if whole:
                yield encode(memoryview(part)[:whole], altchars=b"-_")
        yield encode(rest + mac.finalize(), altchars=b"-_")

    def open_file(self, source: BinaryIO, target: Writes) -> None:
        """Write what the token in ``source`` (seekable) holds to ``target``, in memory for a piece of it.

        The whole token is checked before a byte is written. Raises SealBroken.
        """
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        from cryptography.hazmat.primitives.padding import PKCS7

        start = source.tell()
        try:
            key = self._key_of(source)
            source.seek(start)
            pieces = _signed(source, bytearray())
            first = next(pieces)
            decryptor = Cipher(algorithms.AES(key[16:]), modes.CBC(first[9:_HEADER])).decryptor()
            unpadder = PKCS7(_BLOCK * 8).unpadder()
            for piece in itertools.chain([first[_HEADER:]], pieces):
                target.write(unpadder.update(decryptor.update(piece)))
            target.write(unpadder.update(decryptor.finalize()) + unpadder.finalize())
        except ValueError:
            raise SealBroken from None

    def _key_of(self, source: BinaryIO) -> bytes:
        """Return the key that a token is signed with. Raises ValueError when it is not ours, or this is not a token."""
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.hmac import HMAC

        keys = [base64.urlsafe_b64decode(key) for key in self._keys]
        macs = [HMAC(key[:16], SHA256()) for key in keys]
        signature = bytearray()
        for number, piece in enumerate(_signed(source, signature)):
            if number == 0 and (len(piece) < _HEADER or piece[0] != 0x80):
                break
            for mac in macs:
                mac.update(piece)
        for key, mac in zip(keys, macs, strict=True):
            if signature and hmac.compare_digest(mac.finalize(), bytes(signature)):
                return key
        raise ValueError


def _is_key(key: str) -> bool:
    try:
        return len(base64.b64decode(key.encode("ascii"), altchars=b"-_", validate=True)) == 32
    except ValueError:
        return False


def _signed(source: BinaryIO, signature: bytearray) -> Iterator[bytes]:
    """Give what a token in a file signs, decoded, in pieces, and put its signature last. Raises ValueError."""
    decode, rest = fast_base64().b64decode, b""
    while chunk := source.read(4 * _CHUNK):
        rest += decode(chunk, altchars=b"-_", validate=True)
        if len(rest) > _HMAC:
            yield rest[:-_HMAC]
            rest = rest[-_HMAC:]
    signature += rest


def keygen(argv: Sequence[str] | None, prog: str) -> str:
    """Return what the command prints: a new key, or the new file that holds it, for its owner alone.

    Exits with a line where that cannot be written; no file is overwritten.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description="Make a key for sealed jobs (docs/api.md): give it to the worker as ENCRYPTION_KEY."
    )
    parser.add_argument("file", nargs="?", help="write it to this new file (default: standard output)")
    file: str | None = parser.parse_args(argv).file
    if file is None:
        return generate_key()
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as output:
            output.write(f"{generate_key()}\n")
    except FileExistsError:
        parser.exit(2, f"{file} exists already: jobs sealed with an overwritten key could not be opened any more\n")
    except OSError as error:
        parser.exit(2, f"the key file {file} cannot be written: {error.strerror}\n")
    return file


def main() -> None:
    """Run ``python -m settee keygen``, the command that the errors above name."""
    print(keygen(None, "python -m settee keygen"))  # noqa: T201 - a command's output
