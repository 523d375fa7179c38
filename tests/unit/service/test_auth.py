"""Bearer tokens."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from settee.service.http_server import Auth

TOKENS = Auth([SecretStr("first-token"), SecretStr("second=token/+")])


@pytest.mark.parametrize(
    "header",
    ["Bearer first-token", "Bearer second=token/+", "bearer first-token", "BEARER  first-token", "Bearer first-token "],
)
def test_each_token_is_enough(header: str) -> None:
    assert TOKENS.is_allowed(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "first-token",
        "Basic first-token",
        "Bearer first-toke",
        "Bearer first-token2",
        "Bearer First-Token",
        "Bearer first-token second=token/+",
        "Bearerfirst-token",
        "Bearer first-tokén",
        "Bearer \udcff",
        "Bearer first-token\0",
        "Bearer " + "x" * 100_000,
    ],
)
def test_nothing_else_is(header: str | None) -> None:
    assert not TOKENS.is_allowed(header)


@pytest.mark.parametrize("header", [None, "", "Bearer anything"])
def test_without_tokens_nobody_is_asked(header: str | None) -> None:
    assert Auth([]).is_open
    assert Auth([]).is_allowed(header)
    assert not TOKENS.is_open


def test_tokens_are_not_kept_in_the_clear() -> None:
    assert "first-token" not in repr(vars(TOKENS))
