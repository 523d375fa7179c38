"""A ComfyUI that is not there, and one that is and says nothing, are told apart: the one may be back at once."""

from __future__ import annotations

import socket

import pytest

from settee.backends.comfy.comfy_client import Client, NoAnswer
from settee.backends.comfy.process import free_port
from settee.base.errors import ConfigError


@pytest.mark.parametrize("url", ["http://", "ftp://x", "http://[::1", "http://h:99999", "h:port"])
def test_an_address_that_cannot_be_read_is_a_line(url: str) -> None:
    with pytest.raises(ConfigError, match="COMFY_URL: not an address"):
        Client(url)


def test_nobody_listens() -> None:
    with pytest.raises(NoAnswer, match="cannot be reached") as caught:
        Client(f"http://127.0.0.1:{free_port()}").queue(timeout_s=5)
    assert not caught.value.timed_out


def test_nobody_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(NoAnswer, match="in time") as caught:
            client.queue(timeout_s=0.2)
    assert caught.value.timed_out
