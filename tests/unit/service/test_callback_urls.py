"""Where callbacks may go."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import InvalidRequest
from settee.net.addresses import is_this_machine
from settee.service.callback_urls import addressed, allowed, checked

BASE = "https://control.example:8443/api/v1/"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("/jobs/1/status", "https://control.example:8443/api/v1/jobs/1/status"),
        ("jobs/1?a=b", "https://control.example:8443/api/v1/jobs/1?a=b"),
        ("?only=query", "https://control.example:8443/api/v1/?only=query"),
        ("http://127.0.0.1:3000/cb", "https://control.example:8443/api/v1/cb"),
        ("http://localhost/cb", "https://control.example:8443/api/v1/cb"),
        ("http://LOCALHOST./cb", "https://control.example:8443/api/v1/cb"),
        ("https://api.localhost/cb", "https://control.example:8443/api/v1/cb"),
        ("http://[::1]:80/cb", "https://control.example:8443/api/v1/cb"),
        ("http://[::ffff:127.0.0.1]/cb", "https://control.example:8443/api/v1/cb"),
        ("http://0.0.0.0/cb", "https://control.example:8443/api/v1/cb"),
        ("http://127.1/cb", "https://control.example:8443/api/v1/cb"),
        ("http://2130706433/cb", "https://control.example:8443/api/v1/cb"),
        ("http://me:secret@localhost/cb", "https://control.example:8443/api/v1/cb"),
        ("//localhost/cb", "https://control.example:8443/api/v1/cb"),
        ("http://localhost", "https://control.example:8443/api/v1/"),
        # Any other host stays, private ones too: render nodes and dispatchers share a network.
        ("https://visionsuit.local/cb?x=1", "https://visionsuit.local/cb?x=1"),
        ("http://10.0.0.7:9000/cb", "http://10.0.0.7:9000/cb"),
        ("http://localhost.example/cb", "http://localhost.example/cb"),
        ("http://1270.example/cb", "http://1270.example/cb"),
    ],
)
def test_base_url_replaces_relative_and_loopback_only(url: str, expected: str) -> None:
    assert addressed(url, BASE) == expected


def test_without_a_base_url_an_address_stays() -> None:
    assert addressed("http://127.0.0.1:3000/cb") == "http://127.0.0.1:3000/cb"


@pytest.mark.parametrize(
    ("url", "base_url", "problem"),
    [
        ("/cb", None, "relative"),
        ("/cb", "", "relative"),
        ("ftp://host/cb", BASE, "http"),
        ("file:///etc/passwd", BASE, "http"),
        ("javascript:alert(1)", BASE, "http"),
        ("http://", BASE, "http"),
        ("http://:80/cb", BASE, "http"),
        ("//host/cb", BASE, "http"),
        ("http://host:port/cb", BASE, "not a valid address"),
        ("http://host:99999/cb", BASE, "not a valid address"),
        ("http://[::1/cb", BASE, "not a valid address"),
        ("http://allowed\\@evil/cb", BASE, "backslash"),
        ("http://host/a b", BASE, "space"),
        ("http://１６９.254.169.254/", BASE, "ASCII"),
        ("http://bücher.example/", BASE, "xn--"),
        ("http://host/\r\nX: y", BASE, "control"),
        ("http://host/\u202e", BASE, "control"),
        (f"http://host/{'a' * 2000}", BASE, "2000"),
    ],
)
def test_what_is_no_address(url: str, base_url: str | None, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        addressed(url, base_url)
    assert url not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "hosts", "expected"),
    [
        ("https://control.example/cb", None, True),
        ("http://192.168.1.4/cb", None, True),
        ("http://169.254.169.254/latest/meta-data", None, False),
        ("http://[fe80::1]/cb", None, False),
        ("http://[::ffff:169.254.169.254]/cb", None, False),
        ("http://2852039166/cb", None, False),
        ("http://[fd00:ec2::254]/latest/meta-data", None, False),
        ("http://[fd00:ec2::23]/v1/credentials", None, False),
        ("http://[64:ff9b::a9fe:a9fe]/latest/meta-data", None, False),
        ("http://[64:ff9b::169.254.169.254]/latest/meta-data", None, False),
        ("http://[64:ff9b::192.168.1.4]/cb", None, True),
        ("http://[fd00:ec3::254]/cb", None, True),
        ("http://[fd00:ec2::254]/cb", ["[fd00:ec2::254]"], True),
        ("http://169.254.169.254/cb", ["169.254.169.254"], True),
        ("https://control.example/cb", [], False),
        ("https://control.example/cb", ["control.example"], True),
        ("https://CONTROL.example./cb", ["control.EXAMPLE"], True),
        ("https://ｃontrol.example/cb", ["control.example"], False),
        ("https://evil.example/cb", ["control.example"], False),
        ("https://control.example.evil/cb", ["control.example"], False),
        ("https://a.control.example/cb", ["control.example"], False),
        ("https://a.control.example/cb", ["*.control.example"], True),
        ("https://control.example/cb", ["*.control.example"], False),
        ("https://acontrol.example/cb", ["*.control.example"], False),
        ("https://control.example:8443/cb", ["control.example:8443"], True),
        ("https://control.example/cb", ["control.example:443"], True),
        ("http://control.example/cb", ["control.example:443"], False),
        ("https://control.example/cb", ["control.example:8443"], False),
        ("http://[::1]:9000/cb", ["[::1]:9000"], True),
        ("http://control.example@evil.example/cb", ["control.example"], False),
        ("http://evil.example/#@control.example", ["control.example"], False),
        ("http://evil.example\\@control.example/", ["control.example"], False),
        ("/relative", ["control.example"], False),
        ("https://control.example/cb", ["control.example:nonsense", "[", ""], False),
    ],
)
def test_allowed_hosts(url: str, hosts: list[str] | None, expected: bool) -> None:
    assert allowed(url, hosts) is expected


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_problem(text: str) -> None:
    for url in (text, f"http://{text}", f"http://host/{text}", f"http://host:{text}/"):
        try:
            found = addressed(url, BASE)
        except ValueError:
            continue
        assert urlsplit(found).scheme in ("http", "https")
        assert urlsplit(found).hostname
        allowed(url, [text])


@given(st.ip_addresses(v=4))
def test_loopback_in_every_spelling(address: object) -> None:
    assert is_this_machine(str(address)) == (str(address).startswith("127.") or str(address) == "0.0.0.0")


class TestChecked:
    def test_all_problems_at_once(self) -> None:
        urls = {"status": "/status", "completion": "https://evil.example/c?token=abc", "failure": "nonsense://x"}
        with pytest.raises(InvalidRequest) as caught:
            checked(urls, hosts=["control.example"])
        problems = caught.value.details["problems"]
        assert [each["path"] for each in problems] == ["callbacks.status", "callbacks.completion", "callbacks.failure"]
        assert "abc" not in str(problems)

    def test_the_operators_own_address_needs_no_entry(self) -> None:
        found = checked({"status": "/s", "completion": "", "failure": None}, base_url=BASE, hosts=["other.example"])
        assert found == {"status": "https://control.example:8443/api/v1/s"}

    def test_a_host_of_the_same_name_is_not_the_operators_own(self) -> None:
        with pytest.raises(InvalidRequest):
            checked({"status": "http://control.example/s"}, base_url=BASE, hosts=["other.example"])
