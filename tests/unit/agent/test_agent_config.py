"""The agent's configuration file: what it may say, and what is said of one that is wrong."""

from __future__ import annotations

import base64
import textwrap
from pathlib import Path

import pytest

from settee.base.errors import ConfigError
from settee.doors.agent import config
from settee.doors.agent.config import AgentConfig

MINIMAL = """
minio:
  endpoint: 127.0.0.1:9000
  access_key: minio
  secret_key: very-secret
paths:
  base_models: /srv/comfyui/models/checkpoints
  loras: /srv/comfyui/models/loras
  workflows: /srv/agent/workflows
  outputs: /srv/agent/outputs
  temp: /srv/agent/temp
"""


class File:
    """A configuration file that grows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, more: str = "", base: str = MINIMAL) -> AgentConfig:
        self.path.write_text(base + textwrap.dedent(more), encoding="utf-8")
        return config.load(self.path)

    def problems(self, more: str = "", base: str = MINIMAL) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            self.load(more, base)
        assert "very-secret" not in str(caught.value) + repr(caught.value.details)
        return {entry["path"]: entry["problem"] for entry in caught.value.details["problems"]}

    def message(self, more: str = "", base: str = MINIMAL) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(more, base)
        assert "very-secret" not in caught.value.message
        return caught.value.message


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "config.yaml")


def test_defaults_are_the_contracts(file: File) -> None:
    loaded = file.load()
    comfyui, callbacks = loaded.comfyui, loaded.callbacks
    assert comfyui.url == "http://127.0.0.1:8188"
    assert (comfyui.timeout_seconds, comfyui.poll_interval_seconds) == (900, 2)
    assert (comfyui.object_info_cache_seconds, comfyui.model_refresh_delay_seconds) == (45, 0.75)
    assert (comfyui.per_step_timeout_seconds, comfyui.img2img_timeout_multiplier) == (6, 1.5)
    assert (loaded.minio.secure, loaded.minio.region, loaded.minio.verify_tls) == (False, None, True)
    assert (loaded.cleanup.delete_downloaded_loras, loaded.cleanup.delete_downloaded_models) == (True, True)
    assert (callbacks.base_url, callbacks.verify_tls, callbacks.timeout_seconds) == (None, True, 10)
    assert (callbacks.max_retries, callbacks.retry_backoff_seconds) == (3, 1)
    assert loaded.persistent_model_keys == ()
    assert loaded.workflow_defaults == {}
    assert (loaded.host, loaded.server.port) == ("127.0.0.1", 8081)
    assert loaded.state_folder == Path("/srv/agent/outputs/state")


def test_an_empty_section_or_option_means_its_defaults(file: File) -> None:
    empty = """
    comfyui:
    cleanup:
    callbacks:
      base_url:
      timeout_seconds:
    persistent_model_keys:
    workflow_defaults:
    auth:
      tokens:
    server:
    state_dir:
    """
    assert file.load(empty) == file.load()


def test_the_variable_names_the_file(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    file.load()
    monkeypatch.setenv("VISION_SUITE_AGENT_CONFIG", str(file.path))
    assert config.load() == config.load(file.path)
    monkeypatch.delenv("VISION_SUITE_AGENT_CONFIG")
    with pytest.raises(ConfigError, match="--config or VISION_SUITE_AGENT_CONFIG"):
        config.load()


def test_every_problem_is_told_at_once_by_its_dotted_name(file: File) -> None:
    problems = file.problems(
        """
        comfyui: {port: 0, timeout_seconds: soon, hosts: x, dir: relative/folder}
        cleanup: {delete_downloaded_lora: true}
        callbacks: {max_retries: -1, base_url: "ftp://example.org"}
        workflow_default: {}
        workflow_defaults: {steps: 20, clip_skip: 2}
        server: {host: 0.0.0.0}
        """,
        base=MINIMAL.replace("  access_key: minio\n", "").replace("/srv/agent/temp", "temp"),
    )
    assert set(problems) == {
        "callbacks.base_url",
        "callbacks.max_retries",
        "cleanup.delete_downloaded_lora",
        "comfyui.dir",
        "comfyui.hosts",
        "comfyui.port",
        "comfyui.timeout_seconds",
        "minio.access_key",
        "paths.temp",
        "server.host",
        "workflow_default",
        "workflow_defaults",
    }
    assert problems["minio.access_key"] == "is required"
    assert problems["paths.temp"] == "must be an absolute path"
    assert "steps" in problems["workflow_defaults"]


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("workflow_default: {}", "workflow_defaults"),
        ("cleanup: {delete_downloaded_lora: true}", "delete_downloaded_loras"),
        ("comfyui: {apiurl: http://example.org}", "api_url"),
    ],
)
def test_an_unknown_option_gets_the_nearest_known_one(file: File, wrong: str, near: str) -> None:
    assert f"is not an option; did you mean '{near}'?" in file.message(wrong)


@pytest.mark.parametrize("text", ["", "# nothing\n", "minio:\npaths:\n", "minio: {}\n"])
def test_an_empty_file_names_the_options_it_lacks(file: File, text: str) -> None:
    required = {"minio.endpoint", "minio.access_key", "minio.secret_key"}
    required |= {f"paths.{name}" for name in ("base_models", "loras", "workflows", "outputs", "temp")}
    assert file.problems(base=text) == dict.fromkeys(required, "is required")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "3"])
def test_a_file_that_holds_no_options_is_refused(file: File, text: str) -> None:
    assert "must hold options by name" in file.message(base=text)


def test_broken_yaml_is_told_by_its_line_without_quoting_it(file: File) -> None:
    for value in ("'very-secret\n  x: [", "*very-secret", "!very-secret x", "%very-secret", "2001-99-99"):
        message = file.message(base=f"minio:\n  secret_key: {value}\n")
        assert "is not valid YAML" in message
    assert file.message(base="minio:\n  secret_key: *very-secret\n").endswith("is not valid YAML: see line 2")


def test_an_option_that_is_there_twice_is_refused(file: File) -> None:
    assert "has paths a second time in line 12: leave" in file.message("paths:\n  temp: /elsewhere\n")


def test_yaml_anchors_and_merges_still_work(file: File) -> None:
    loaded = file.load("workflow_defaults:\n  a: &one {x: 1}\n  b:\n    <<: *one\n    y: 2\n")
    assert loaded.workflow_defaults["b"] == {"x": 1, "y": 2}


def test_a_file_that_cannot_be_read(file: File, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.load(tmp_path / "missing.yaml")
    file.path.write_bytes(b"minio: \xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(file.path)


def test_numbers_must_be_finite_and_types_are_not_bent(file: File) -> None:
    assert "finite" in file.message("comfyui: {timeout_seconds: .inf}")
    problems = file.problems('server: {port: "8081"}\nminio_: {}\n', base=MINIMAL.replace("very-secret", "12345"))
    assert set(problems) == {"server.port", "minio.secret_key", "minio_"}


@pytest.mark.parametrize(
    ("endpoint", "secure", "url"),
    [
        ("minio.local:9000", None, "http://minio.local:9000"),
        ("minio.local:9000", True, "https://minio.local:9000"),
        ("minio.local", False, "http://minio.local"),
        ("https://minio.local/", None, "https://minio.local"),
        ("http://[::1]:9000", False, "http://[::1]:9000"),
    ],
)
def test_the_s3_endpoint(file: File, endpoint: str, secure: bool | None, url: str) -> None:
    base = MINIMAL.replace("127.0.0.1:9000", f'"{endpoint}"')
    if secure is not None:
        base = base.replace("  access_key", f"  secure: {str(secure).lower()}\n  access_key")
    assert file.load(base=base).minio.url == url


@pytest.mark.parametrize("endpoint", ["host:port", "user:secret@host:9000", "host/path", "ftp://host", "", "a b"])
def test_an_s3_endpoint_that_is_none(file: File, endpoint: str) -> None:
    assert "minio.endpoint" in file.problems(base=MINIMAL.replace("127.0.0.1:9000", f'"{endpoint}"'))


def test_the_endpoints_scheme_and_secure_must_agree(file: File) -> None:
    base = MINIMAL.replace("127.0.0.1:9000", "http://127.0.0.1:9000\n  secure: true")
    assert "contradict" in file.problems(base=base)["minio"]


@pytest.mark.parametrize(
    ("section", "url"),
    [
        ("{host: gpu.local, port: 80, scheme: https}", "https://gpu.local:80"),
        ("{api_url: 'http://gpu.local:8188/', port: 1}", "http://gpu.local:8188"),
        ("{host: '::1'}", "http://[::1]:8188"),
    ],
)
def test_comfyuis_address(file: File, section: str, url: str) -> None:
    assert file.load(f"comfyui: {section}").comfyui.url == url


def test_a_jobs_time_limit_grows_with_its_steps(file: File) -> None:
    comfyui = file.load().comfyui
    assert comfyui.time_limit_s(20) == 900
    assert comfyui.time_limit_s(20, from_picture=True) == 1350
    assert comfyui.time_limit_s(500) == 3000


@pytest.mark.parametrize(
    "section",
    [
        "{dir: /srv/comfyui, api_url: 'http://127.0.0.1:8188'}",
        "{input_dir: /srv/comfyui/input}",
        "{temp_dir: /srv/comfyui/temp}",
    ],
)
def test_contradictions_about_comfyui(file: File, section: str) -> None:
    assert set(file.problems(f"comfyui: {section}")) == {"comfyui"}


@pytest.mark.parametrize("folder", ["/srv/agent/outputs", "/srv/agent", "/srv/comfyui/models/loras/..", "/"])
def test_a_folder_that_is_emptied_holds_nothing_that_must_stay(file: File, folder: str) -> None:
    message = file.message(f"comfyui: {{input_dir: /srv/comfyui/input, output_dir: {folder}}}")
    assert "comfyui.output_dir is emptied for every job" in message


def test_allowed_hosts(file: File) -> None:
    hosts = ("control.example.org", "10.0.0.7:8080", "*.example.org", "[::1]:80", "bücher.example")
    written = ", ".join(f"'{host}'" for host in hosts)
    assert file.load(f"callbacks: {{allowed_hosts: [{written}]}}").callbacks.allowed_hosts == hosts
    assert file.load("callbacks: {allowed_hosts: []}").callbacks.allowed_hosts == ()
    assert file.load("callbacks: {allowed_hosts: }").callbacks.allowed_hosts is None


@pytest.mark.parametrize("host", ["https://control.example.org", "host/path", "*", "a b", "", "user@host"])
def test_an_allowed_host_that_would_match_nothing(file: File, host: str) -> None:
    problems = file.problems(f"callbacks: {{allowed_hosts: [fine, '{host}']}}")
    assert set(problems) == {"callbacks.allowed_hosts.1"}


def test_secrets_are_not_shown(file: File) -> None:
    loaded = file.load("auth: {tokens: [very-secret-token]}")
    assert "very-secret" not in repr(loaded) + str(loaded) + loaded.model_dump_json()
    assert loaded.minio.secret_key.get_secret_value() == "very-secret"


# --- who may use it --------------------------------------------------------------------------------------


def tokens(loaded: AgentConfig) -> list[str]:
    return [token.get_secret_value() for token in loaded.auth.secrets]


def test_with_a_token_it_listens_everywhere(file: File) -> None:
    loaded = file.load("auth: {tokens: [abc]}")
    assert loaded.host == "0.0.0.0"
    assert file.load("auth: {tokens: [abc]}\nserver: {host: 127.0.0.1}").host == "127.0.0.1"
    assert file.load("auth: {tokens: [abc]}\nserver: {host: '10.0.0.7'}").host == "10.0.0.7"


@pytest.mark.parametrize("host", ["0.0.0.0", "'::'", "10.0.0.7", "gpu.local", "127.0.0.1.evil.example"])
def test_without_a_token_it_does_not_listen_elsewhere(file: File, host: str) -> None:
    assert "while no token is set" in file.problems(f"server: {{host: {host}}}")["server.host"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "'::1'", "localhost"])
def test_without_a_token_it_listens_on_loopback(file: File, host: str) -> None:
    assert file.load(f"server: {{host: {host}}}").host == host.strip("'")


def test_tokens_of_the_file_the_environment_and_a_file(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "tokens"
    secrets.write_text("# the control plane\n  two \n\nthree\n")
    monkeypatch.setenv("AGENT_TOKENS", "four, five,")
    loaded = file.load(f"auth: {{tokens: [one], tokens_file: {secrets}, tokens_env: AGENT_TOKENS}}")
    assert tokens(loaded) == ["one", "two", "three", "four", "five"]
    assert loaded.host == "0.0.0.0"


def test_a_source_of_tokens_without_one_is_an_error_not_an_open_door(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").write_text("# nothing yet\n")
    monkeypatch.delenv("AGENT_TOKENS", raising=False)
    problems = file.problems(f"auth: {{tokens_file: {tmp_path / 'empty'}, tokens_env: AGENT_TOKENS}}")
    assert problems == {
        "auth.tokens_file": "leads to no value",
        "auth.tokens_env": "names a variable that is not set",
    }
    monkeypatch.setenv("AGENT_TOKENS", "has space")
    assert "visible ASCII" in file.problems("auth: {tokens_env: AGENT_TOKENS}")["auth.tokens_env.0"]
    assert "cannot be read" in file.problems("auth: {tokens_file: /nowhere/tokens}")["auth.tokens_file"]


@pytest.mark.parametrize("token", ["''", "'has space'", "'ümlaut'", '"line\\nbreak"'])
def test_a_token_must_be_one_that_can_be_sent(file: File, token: str) -> None:
    assert "must be visible ASCII" in file.problems(f"auth: {{tokens: [fine, {token}]}}")["auth.tokens.1"]


def signing_secret(number: int) -> str:
    return f"whsec_{base64.b64encode(bytes([number]) * 32).decode()}"


def test_signing_secrets_of_the_file_the_environment_and_a_file(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secrets").write_text(f"# the new one\n{signing_secret(2)}\n")
    monkeypatch.setenv("AGENT_SIGNING", signing_secret(3))
    loaded = file.load(
        f"callbacks: {{signing_secrets: ['{signing_secret(1)}'], signing_secrets_file: {tmp_path / 'secrets'}, "
        "signing_secrets_env: AGENT_SIGNING}"
    )
    assert loaded.callbacks.signing_keys() == [bytes([number]) * 32 for number in (1, 2, 3)]
    assert set(map(signing_secret, (1, 2, 3))) <= set(loaded.secrets())
    assert not any(signing_secret(number) in repr(loaded) for number in (1, 2, 3))


def test_a_source_of_signing_secrets_without_one_is_an_error(
    file: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setenv("AGENT_SIGNING", "not-a-secret")
    source = f"callbacks: {{signing_secrets_file: {tmp_path / 'empty'}, signing_secrets_env: AGENT_SIGNING}}"
    problems = file.problems(source)
    assert problems["callbacks.signing_secrets_file"] == "leads to no value"
    assert "must be whsec_" in problems["callbacks.signing_secrets_env.0"]
    assert "not-a-secret" not in str(problems)
    assert "must be whsec_" in file.problems("callbacks: {signing_secrets: [x]}")["callbacks.signing_secrets.0"]
