"""One POST of a callback, and what became of it. The outbox decides whether there is another.

Redirects are never followed: a POST that follows one may lose its body, and the address that it leads to was not
checked by anybody.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from settee import __version__
from settee.doors.agent.callbacks.addressing import addressed
from settee.net.addresses import leads_here
from settee.net.retry import retry_after_s

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

#: Answers after which the same request may well succeed later.
RETRIED = frozenset((408, 429))
#: Retry-After is believed up to this, seconds.
_LONGEST_ASKED_S = 3600.0
#: Requests to one host that were given up and whose threads still wait for it.
_MAX_GIVEN_UP = 4


@dataclass(frozen=True)
class Post:
    """What is sent: the same key and the same bytes, however often."""

    #: May hold credentials: neither shown nor logged.
    url: str = field(repr=False)
    #: The header Idempotency-Key.
    key: str
    #: JSON.
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Answer:
    """What became of one attempt."""

    #: None: nobody answered.
    status: int | None = None
    #: A few words without the address, for the log.
    why: str = ""
    #: How long the receiver wants to be left alone, seconds.
    retry_after_s: float = 0.0
    #: Whether the request can never be sent: the address is none.
    is_hopeless: bool = False

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        """It is not delivered, and sending it again would change nothing."""
        if self.status is None:
            return self.is_hopeless
        return not self.is_delivered and self.status not in RETRIED and self.status < 500


class Sender(Protocol):
    """Sends one Post within ``timeout_s`` seconds, all told, and never raises."""

    def __call__(self, post: Post, timeout_s: float) -> Answer: ...


def sent(sender: Sender, post: Post, timeout_s: float) -> Answer:
    """The sender's answer. A fault of the sender counts as none: nobody would restart the thread that it ends."""
    try:
        return sender(post, timeout_s)
    except Exception as error:
        # Its text may hold the address.
        log.error("the callback %s could not be sent: %s", post.key, type(error).__name__)
        return Answer(why=f"the agent could not send it ({type(error).__name__})")


class Poster:
    """Sends over HTTP. May be used from many threads."""

    def __init__(self, *, verify_tls: bool = True) -> None:
        self._verify_tls = verify_tls
        self._lock = threading.Lock()
        #: By host and port.
        self._given_up: Counter[str] = Counter()

    def __call__(self, post: Post, timeout_s: float) -> Answer:
        """A time limit of requests' own counts each read of the socket anew, and none of them the name lookup: a
        receiver that sends a byte now and then would hold callbacks up for ever. So the request has a thread of its
        own, which is left alone when its time is up; what it has not begun to write by then, it does not write.
        """
        try:
            host = _host(post.url)
        except ValueError:
            return Answer(why="its address cannot be used", is_hopeless=True)
        with self._lock:
            if self._given_up[host] >= _MAX_GIVEN_UP:
                return Answer(why="earlier requests to this host are still not answered")
        try:
            attempt = _Attempt(lambda may_write: _post(post, timeout_s, self._verify_tls, may_write))
        except RuntimeError:  # "can't start new thread": the machine or its container has no more
            return Answer(why="no thread can be started for it")
        answer = attempt.wait(timeout_s)
        if answer is not None:
            return answer
        # A fault of its own in that thread shows up in the log, and counts as no answer.
        with self._lock:
            self._given_up[host] += 1
        attempt.when_done(lambda: self._forget(host))
        return _late(timeout_s)

    def _forget(self, host: str) -> None:
        with self._lock:
            self._given_up[host] -= 1
            if not self._given_up[host]:
                del self._given_up[host]


class _Attempt:
    """A request in a thread of its own."""

    def __init__(self, work: Callable[[Callable[[], bool]], Answer]) -> None:
        """``work(may_write)`` asks before it writes the request. Raises RuntimeError when there is no thread for it."""
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._is_given_up = False
        self._answer: Answer | None = None
        self._afterwards: Callable[[], None] = lambda: None
        threading.Thread(target=self._run, args=(work,), name="settee-callback", daemon=True).start()

    def wait(self, timeout_s: float) -> Answer | None:
        """None: there is none in that time, and the request is given up."""
        if self._done.wait(timeout_s):
            return self._answer
        self._is_given_up = True
        return None

    def when_done(self, afterwards: Callable[[], None]) -> None:
        with self._lock:
            if not self._done.is_set():
                self._afterwards = afterwards
                return
        afterwards()

    def _run(self, work: Callable[[Callable[[], bool]], Answer]) -> None:
        try:
            self._answer = work(lambda: not self._is_given_up)
        finally:
            with self._lock:
                self._done.set()
            self._afterwards()


def _host(url: str) -> str:
    """``host:port``, without credentials. Raises ValueError for what no request can be sent to, whoever tries."""
    parts = urlsplit(addressed(url))
    host = parts.hostname or ""
    host.encode("idna")  # as a connection does: a label may be empty or too long
    return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _post(post: Post, timeout_s: float, verify_tls: bool, may_write: Callable[[], bool]) -> Answer:
    """``may_write`` is asked when there is a connection, before the request is written."""
    import requests
    import urllib3

    from settee.doors.agent.callbacks.connecting import NotWanted

    if not verify_tls:
        # The operator knows; one warning for each request tells nothing new.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    with _session(post.url, may_write) as session:
        try:
            request = session.prepare_request(_request(post))
        except ValueError:  # requests.exceptions.InvalidURL, or of a library below
            return Answer(why="its address cannot be used", is_hopeless=True)
        # The address is one: what is wrong from here on may be put right, a proxy's in the environment included.
        try:
            # As a stream: the body of the answer says nothing that is needed, and may be endless.
            settings = session.merge_environment_settings(post.url, {}, True, verify_tls, None)
            with session.send(request, timeout=timeout_s, allow_redirects=False, **settings) as response:
                return _answer(response.status_code, response.headers.get("Retry-After", ""))
        except NotWanted:
            return _late(timeout_s)
        except requests.exceptions.SSLError:
            return Answer(why="its TLS certificate or connection is not valid")
        except requests.exceptions.Timeout:
            return _late(timeout_s)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema):
            return Answer(why="the proxy in the agent's environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is not usable")
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError):
            return Answer(why="the connection failed or broke off")


def _request(post: Post) -> requests.Request:
    import requests

    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": f"settee/{__version__}",
        "Idempotency-Key": header_text(post.key),
    }
    return requests.Request("POST", post.url, headers=headers, data=post.body, auth=_Credentials(post.url))


def _late(timeout_s: float) -> Answer:
    return Answer(why=f"no answer within {timeout_s:.3g} s")


def _answer(status: int, retry_after: str) -> Answer:
    if 300 <= status < 400:
        return Answer(status, f"HTTP {status}: it redirects to another address; give that one")
    asked_s = retry_after_s(retry_after, _LONGEST_ASKED_S) if status in RETRIED or status >= 500 else None
    return Answer(status, f"HTTP {status}", asked_s or 0.0)


def _session(url: str, may_write: Callable[[], bool]) -> requests.Session:
    import requests

    from settee.doors.agent.callbacks.connecting import AskingAdapter

    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, AskingAdapter(may_write))
    # The environment's proxy knows nothing of this machine's own ports.
    session.trust_env = not leads_here(url)
    return session


class _Credentials:
    """Those in the address, and no others: requests would look for some in ~/.netrc."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._user, self._password = parts.username, parts.password

    def __call__(self, request: Any) -> Any:
        if self._user is not None or self._password is not None:
            from requests.auth import HTTPBasicAuth

            return HTTPBasicAuth(unquote(self._user or ""), unquote(self._password or ""))(request)
        return request


def header_text(text: str) -> str:
    """As a header can carry it: what is not printable ASCII is percent-encoded (UTF-8), and % with it."""
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip():
        return text
    return "".join(
        c if "!" <= c <= "~" and c != "%" else "".join(f"%{byte:02X}" for byte in c.encode(errors="surrogatepass"))
        for c in text
    )
