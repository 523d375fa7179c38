"""Settings: every bad value named at once, none shown, secrets from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from settee.base.errors import ConfigError
from settee.base.settings import child_environment, load


def test_every_bad_value_is_named_at_once_and_none_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFY_PORT", "VALUE")
    monkeypatch.setenv("DELIVERY", "VALUE")
    with pytest.raises(ConfigError) as caught:
        load()
    assert "COMFY_PORT" in caught.value.message
    assert "DELIVERY" in caught.value.message
    assert "VALUE" not in caught.value.message


@pytest.mark.parametrize("name", ["run_result_mb", "job_timeout_s", "download_timeout_s"])
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1"])
def test_a_limit_is_a_finite_number_above_zero(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name.upper()):
        load(**{name: value})


def test_half_a_bucket_is_none() -> None:
    with pytest.raises(ConfigError, match="belong together"):
        load(bucket_endpoint_url="http://127.0.0.1:9000")


def test_a_secret_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k\n")
    monkeypatch.setenv("COMFY_ORG_API_KEY_FILE", str(tmp_path / "key"))
    secret = load().comfy_org_api_key
    assert secret is not None
    assert secret.get_secret_value() == "k"
    monkeypatch.setenv("COMFY_ORG_API_KEY_FILE", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="COMFY_ORG_API_KEY_FILE"):
        load()


def test_comfyui_does_not_see_the_workers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENCRYPTION_KEY", "BUCKET_SECRET_ACCESS_KEY", "RUNPOD_AI_API_KEY", "HARMLESS"):
        monkeypatch.setenv(name, "x")
    assert {name for name in child_environment() if child_environment()[name] == "x"} >= {"HARMLESS"}
    assert not {"ENCRYPTION_KEY", "BUCKET_SECRET_ACCESS_KEY", "RUNPOD_AI_API_KEY"} & child_environment().keys()
