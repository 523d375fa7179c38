"""The agent's configuration: the options of its YAML file, and how it is loaded.

Each section is a model whose fields are strict: a number in quotes is not a number. An empty section, or an empty
option, means its default. deploy/config.example.yaml describes every option, and a test holds it to this file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from settee.base.errors import ConfigError
from settee.base.settings import MIB
from settee.base.yaml_io import read_yaml
from settee.net.addresses import is_loopback
from settee.service.config_file import Problem, Section, checked, filled, values_of_file, values_of_variable
from settee.service.webhooks import signing_key

VARIABLE = "VISION_SUITE_AGENT_CONFIG"
EXAMPLE = "deploy/config.example.yaml"
#: What a job's request must say itself: no default may stand in for it; only a seed is drawn.
REQUIRED_SAMPLING = ("steps", "cfg_scale", "sampler", "scheduler", "width", "height", "seed")


def _absolute(path: Path) -> Path:
    # Under systemd, a relative path would be one below /.
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return Path(os.path.normpath(path))


Folder = Annotated[Path, AfterValidator(_absolute)]
Seconds = Annotated[float, Field(gt=0)]
Pause = Annotated[float, Field(ge=0)]
Secret = Annotated[SecretStr, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _token(secret: SecretStr) -> SecretStr:
    # What an Authorization header can carry after "Bearer " (RFC 9110's field values, without spaces).
    if re.fullmatch(r"[\x21-\x7e]+", secret.get_secret_value()) is None:
        raise ValueError("must be visible ASCII characters without spaces")
    return secret


def _signing_secret(secret: SecretStr) -> SecretStr:
    signing_key(secret.get_secret_value())
    return secret


Tokens = tuple[Annotated[SecretStr, AfterValidator(_token)], ...]
SigningSecrets = tuple[Annotated[SecretStr, AfterValidator(_signing_secret)], ...]
#: Their fields hold what the file, or the variable, that the option names has in it.
OF_FILE, OF_VARIABLE = BeforeValidator(values_of_file), BeforeValidator(values_of_variable)


def _http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError("must be an http:// or https:// address")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must be an address without credentials, query or fragment")
    parts.port  # noqa: B018 - raises ValueError for what is not a port
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_http_url)]


def _host(text: str) -> str:
    # A name with a scheme or a path would match no callback, in silence.
    if re.fullmatch(r"(\*\.)?[\w.-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?", text) is None:
        raise ValueError("must be a host name or address (host, host:port or *.domain), without scheme and path")
    return text


Host = Annotated[str, Field(max_length=260), AfterValidator(_host)]


class Minio(Section):
    """The S3 server that holds models, workflow templates and results."""

    endpoint: str
    access_key: Secret
    secret_key: Secret
    secure: bool = False
    region: Line | None = None
    verify_tls: bool = True

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str) -> str:
        if "://" in value:
            return _http_url(value)
        if "/" in value.rstrip("/"):
            raise ValueError("must be host:port, or an http:// or https:// address")
        _http_url(f"http://{value}")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _one_scheme(self) -> Minio:
        if "secure" in self.model_fields_set and self.endpoint.startswith("http://" if self.secure else "https://"):
            raise ValueError("secure and the scheme of endpoint contradict each other: leave one of them out")
        return self

    @property
    def url(self) -> str:
        """The endpoint with its scheme."""
        return self.endpoint if "://" in self.endpoint else f"http{'s' * self.secure}://{self.endpoint}"


class ComfyUI(Section):
    """The ComfyUI of the agent: one that runs already, or with `dir` one that the agent starts and restarts."""

    api_url: Url | None = None
    scheme: Literal["http", "https"] = "http"
    host: Line = "127.0.0.1"
    port: Port = 8188
    dir: Folder | None = None
    custom_nodes_dirs: tuple[Folder, ...] | None = None
    input_dir: Folder | None = None
    output_dir: Folder | None = None
    temp_dir: Folder | None = None
    timeout_seconds: Seconds = 900
    poll_interval_seconds: Seconds = 2
    client_id: Line = "settee-agent"
    object_info_cache_seconds: Pause = 45
    model_refresh_delay_seconds: Pause = 0.75
    per_step_timeout_seconds: Pause = 6
    img2img_timeout_multiplier: Annotated[float, Field(ge=1)] = 1.5

    @model_validator(mode="after")
    def _one_comfyui(self) -> ComfyUI:
        folders = (self.input_dir, self.output_dir)
        if self.dir and (self.api_url or self.temp_dir or any(folders)):
            raise ValueError("dir starts a ComfyUI: leave out api_url and the input, output and temp folders")
        if self.custom_nodes_dirs and not self.dir:
            raise ValueError("custom_nodes_dirs is for the ComfyUI that dir starts: give dir too")
        if any(folders) != all(folders) or (self.temp_dir and not self.output_dir):
            raise ValueError("input_dir and output_dir belong together, and temp_dir to both")
        return self

    @property
    def url(self) -> str:
        """The address of the ComfyUI that runs already."""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return self.api_url or f"{self.scheme}://{host}:{self.port}"

    def time_limit_s(self, steps: int, *, from_picture: bool = False) -> float:
        """A job's time limit in seconds: for its steps, but never less than timeout_seconds."""
        limit = max(self.timeout_seconds, steps * self.per_step_timeout_seconds)
        return limit * self.img2img_timeout_multiplier if from_picture else limit


class Paths(Section):
    """Folders of this host."""

    base_models: Folder
    loras: Folder
    workflows: Folder
    outputs: Folder
    temp: Folder


class Cleanup(Section):
    """Models that are removed when a job ends."""

    delete_downloaded_loras: bool = True
    delete_downloaded_models: bool = True


class Callbacks(Section):
    """How the control plane is notified."""

    base_url: Url | None = None
    allowed_hosts: tuple[Host, ...] | None = None
    verify_tls: bool = True
    timeout_seconds: Seconds = 10
    max_retries: Annotated[int, Field(ge=0, le=100)] = 3
    retry_backoff_seconds: Pause = 1
    heartbeat_seconds: Seconds = 10
    signing_secrets: SigningSecrets = ()
    signing_secrets_file: Annotated[SigningSecrets, OF_FILE] = ()
    signing_secrets_env: Annotated[SigningSecrets, OF_VARIABLE] = ()

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """Those of all three options."""
        return (*self.signing_secrets, *self.signing_secrets_file, *self.signing_secrets_env)

    def signing_keys(self) -> list[bytes]:
        return [signing_key(secret.get_secret_value()) for secret in self.secrets]


class Auth(Section):
    """Access to the agent. Without any token it listens on loopback only."""

    tokens: Tokens = ()
    tokens_file: Annotated[Tokens, OF_FILE] = ()
    tokens_env: Annotated[Tokens, OF_VARIABLE] = ()

    @property
    def secrets(self) -> tuple[SecretStr, ...]:
        """Those of all three options."""
        return (*self.tokens, *self.tokens_file, *self.tokens_env)


class Server(Section):
    """The address that the agent listens on."""

    host: Line | None = None
    port: Port = 8081
    max_body_bytes: Annotated[int, Field(ge=1024)] = 16 * MIB


class AgentConfig(Section):
    """The whole file."""

    minio: Minio
    comfyui: ComfyUI = Field(default_factory=ComfyUI)
    paths: Paths
    state_dir: Folder | None = None
    persistent_model_keys: tuple[Line, ...] = ()
    cleanup: Cleanup = Field(default_factory=Cleanup)
    callbacks: Callbacks = Field(default_factory=Callbacks)
    workflow_defaults: dict[str, Any] = Field(default_factory=dict)
    auth: Auth = Field(default_factory=Auth)
    server: Server = Field(default_factory=Server)

    @field_validator("workflow_defaults")
    @classmethod
    def _none_required(cls, values: dict[str, Any]) -> dict[str, Any]:
        if wrong := [name for name in REQUIRED_SAMPLING if name in values]:
            raise ValueError(f"must not hold {', '.join(wrong)}: every job states that itself")
        return values

    @model_validator(mode="after")
    def _nothing_of_ours_is_emptied(self) -> AgentConfig:
        emptied = {f"comfyui.{name}": getattr(self.comfyui, name) for name in ("input_dir", "output_dir", "temp_dir")}
        emptied["paths.temp/workspace"] = self.workspace_dir
        kept = {f"paths.{name}": getattr(self.paths, name) for name in ("base_models", "loras", "workflows", "outputs")}
        kept["state_dir"] = self.state_folder
        for name, folder in emptied.items():
            for other, place in kept.items() if folder else ():
                real, there = Path(os.path.realpath(folder)), Path(os.path.realpath(place))
                if real in (there, *there.parents):
                    raise ValueError(f"{name} is emptied for every job: it must not be or hold {other}")
        return self

    def secrets(self) -> list[str]:
        """Return the values of this file that must not be kept, shown or logged."""
        own = (self.minio.access_key, self.minio.secret_key, *self.auth.secrets, *self.callbacks.secrets)
        return [each.get_secret_value() for each in own]

    @property
    def state_folder(self) -> Path:
        """The folder of the store."""
        return self.state_dir or self.paths.outputs / "state"

    @property
    def workspace_dir(self) -> Path:
        """The engine's folder for the files of the running job."""
        return self.paths.temp / "workspace"

    @property
    def host(self) -> str:
        """The address to listen on."""
        return self.server.host or ("0.0.0.0" if self.auth.secrets else "127.0.0.1")  # noqa: S104 - with a token


# --- loading ---------------------------------------------------------------------------------------------------


def load(path: Path | str | None = None) -> AgentConfig:
    """Return the configuration of ``path``, or of the file that VISION_SUITE_AGENT_CONFIG names. Raises ConfigError."""
    path = path or os.environ.get(VARIABLE)
    if not path:
        raise ConfigError(f"no configuration: name a YAML file with --config or {VARIABLE}")
    return parse(read_yaml(path, f"the configuration {path}"), f"the configuration {path}")


def parse(data: object, name: str = "the configuration") -> AgentConfig:
    """Return what a YAML file holds, checked. Raises ConfigError with all problems."""
    given = filled({} if data is None else data, AgentConfig)
    if not isinstance(given, Mapping):
        raise ConfigError(f"{name} must hold options by name: see {EXAMPLE}")
    server, auth, problems = given["server"], given["auth"], list[Problem]()
    host = server.get("host") if isinstance(server, Mapping) else None
    has_token = not isinstance(auth, Mapping) or any(map(auth.get, ("tokens", "tokens_file", "tokens_env")))
    if isinstance(host, str) and host and not has_token and not is_loopback(host):
        problem = "must be 127.0.0.1 (or another loopback address) while no token is set in auth"
        problems.append({"path": "server.host", "problem": problem})
    return checked(AgentConfig, given, name, problems)
