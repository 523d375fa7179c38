"""One attempt, at a real receiver that fails in every way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import threading
import time

import pytest
import standardwebhooks

from settee.service.store import Callback
from settee.service.webhooks import Answer, WebhookSender, header_text, signing_key
from tests.support.http_double import Reply
from tests.support.outbox import ask, post
from tests.support.receiver import CUT, SILENT, Call, Receiver


def test_it_is_delivered() -> None:
    with Receiver() as receiver:
        answer = ask(WebhookSender(), post(receiver.url("completion")), 5)
    assert answer.is_delivered
    assert not answer.is_refused
    (call,) = receiver.calls
    assert call.raw == b'{"state": "SUCCESS"}'
    assert call.key == "job-1-SUCCESS"
    assert call.headers["content-type"] == "application/json"
    assert "authorization" not in call.headers


@pytest.mark.parametrize(
    ("status", "refused"),
    [
        (200, False),
        (204, False),
        (301, True),
        (400, True),
        (401, True),
        (404, True),
        (408, False),
        (409, True),
        (410, True),
        (413, True),
        (422, True),
        (429, False),
        (500, False),
        (502, False),
        (503, False),
    ],
)
def test_what_an_answer_means(status: int, refused: bool) -> None:
    headers = {"Content-Length": "0"} if status != 204 else {}
    with Receiver(lambda call: Reply(status, headers)) as receiver:
        answer = ask(WebhookSender(), post(receiver.url()), 5)
    assert answer.status == status
    assert answer.is_delivered == (status < 300)
    assert answer.is_refused == refused


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int) -> None:
    with Receiver() as private, Receiver(lambda call: Reply(status, {"Location": private.url()})) as receiver:
        answer = ask(WebhookSender(), post(receiver.url()), 5)
    assert answer.is_refused
    assert "redirect" in answer.why
    assert private.calls == []


def test_a_receiver_that_is_down() -> None:
    with Receiver() as receiver:
        url = receiver.url()
    answer = ask(WebhookSender(), post(url), 5)
    assert answer.status is None
    assert not answer.is_delivered
    assert not answer.is_refused


def test_a_connection_that_is_cut() -> None:
    with Receiver(lambda call: CUT) as receiver:
        answer = ask(WebhookSender(), post(receiver.url()), 5)
    assert (answer.status, answer.is_refused) == (None, False)


@pytest.mark.parametrize("response", [SILENT, Reply(delay_s=5), Reply(head_drips_every_s=0.01)])
def test_a_slow_one_costs_its_time_limit(response: Reply) -> None:
    """Also one that drips, which no socket timeout sees."""
    with Receiver(lambda call: response) as receiver:
        begun = time.monotonic()
        answer = ask(WebhookSender(), post(receiver.url()), 0.2)
        took = time.monotonic() - begun
    assert (answer.status, answer.is_refused) == (None, False)
    assert "0.2 s" in answer.why
    assert took < 4.5


def test_no_tls_where_some_is_expected() -> None:
    with Receiver() as receiver:
        answer = ask(WebhookSender(), post(receiver.url().replace("http://", "https://")), 5)
    assert (answer.status, answer.is_refused) == (None, False)
    assert "TLS" in answer.why


def test_an_endless_answer_is_not_read() -> None:
    with Receiver(lambda call: Reply(200, {"Content-Length": str(1 << 40)})) as receiver:
        assert ask(WebhookSender(), post(receiver.url()), 2).is_delivered


def test_an_answer_that_is_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"SSH-2.0-nonsense\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        answer = ask(WebhookSender(), post(f"http://127.0.0.1:{server.getsockname()[1]}/"), 5)
        thread.join(5)
    assert (answer.status, answer.is_refused) == (None, False)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("c7c4-RUNNING-1", "c7c4-RUNNING-1"),
        ("a b-SUCCESS", "a b-SUCCESS"),
        ("日本-SUCCESS", "%E6%97%A5%E6%9C%AC-SUCCESS"),
        ("a\r\nX: y-SUCCESS", "a%0D%0AX:%20y-SUCCESS"),
        ("50%-SUCCESS", "50%25-SUCCESS"),
    ],
)
def test_a_key_as_a_header_carries_it(key: str, expected: str) -> None:
    assert header_text(key) == expected
    with Receiver() as receiver:
        assert ask(WebhookSender(), post(receiver.url(), key), 5).is_delivered
    assert receiver.calls[0].key == expected


def test_nothing_secret_is_shown() -> None:
    assert "secret" not in repr(Callback(url="http://me:secret@host/", key="k", body=b"secret"))
    assert Answer(200).is_delivered


def test_signatures() -> None:
    """A receiver with one of the secrets checks them, with lines of its own and with the package of the standard."""
    secrets = [f"whsec_{base64.b64encode(bytes([number]) * 24).decode()}" for number in range(2)]
    sender = WebhookSender(secrets=[signing_key(each) for each in secrets])
    with Receiver() as receiver:
        assert ask(sender, post(receiver.url(), "日本-SUCCESS", b'{"state": "\\u65e5"}'), 5).is_delivered
    (call,) = receiver.calls
    assert call.headers["webhook-id"] == call.key == "%E6%97%A5%E6%9C%AC-SUCCESS"
    assert abs(int(call.headers["webhook-timestamp"]) - time.time()) < 60
    for secret in secrets:
        assert is_signed(secret, call)
        standardwebhooks.Webhook(secret).verify(call.raw, call.headers)
    other = f"whsec_{base64.b64encode(b'x' * 24).decode()}"
    assert not is_signed(other, call)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(other).verify(call.raw, call.headers)


def is_signed(secret: str, call: Call) -> bool:
    content = f"{call.headers['webhook-id']}.{call.headers['webhook-timestamp']}.".encode() + call.raw
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return f"v1,{digest}" in call.headers["webhook-signature"].split()


def test_without_a_secret_nothing_is_signed() -> None:
    with Receiver() as receiver:
        assert ask(WebhookSender(), post(receiver.url()), 5).is_delivered
    assert not [name for name in receiver.calls[0].headers if name.startswith("webhook-")]


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!", base64.b64encode(b"x" * 24).decode(), "whsec_" + "eHh4" * 30],
)
def test_what_cannot_sign(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        signing_key(secret)
