"""The agent's configuration: the options of its YAML file, and how it is loaded.

Each section is a model whose fields are strict: a number in quotes is not a number. An empty section, or an empty
option, means its default. deploy/config.example.yaml shows every option, and a test holds it to this file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from settee.base.errors import ConfigError
from settee.base.settings import MIB
from settee.net.addresses import is_loopback
from settee.service.config_file import Problem, Section, checked, filled, read, with_secrets
from settee.service.webhooks import SECRET_RULE, signing_key

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
Count = Annotated[int, Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


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

    endpoint: str = Field(description="`host:port`, or an http(s) address.")
    access_key: SecretStr = Field(min_length=1, description="Access key.")
    secret_key: SecretStr = Field(min_length=1, description="Secret key.")
    secure: bool = Field(False, description="Whether a `host:port` endpoint is spoken to over TLS.")
    region: Line | None = Field(None, description="Region. Unset: read from the endpoint, else us-east-1.")
    verify_tls: bool = Field(True, description="Whether the server's certificate is checked.")

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

    api_url: Url | None = Field(None, description="Its address; takes precedence over scheme, host and port.")
    scheme: Literal["http", "https"] = Field("http", description="Scheme of its address.")
    host: Line = Field("127.0.0.1", description="Host of its address.")
    port: Port = Field(8188, description="Port of its address, or for the one that the agent starts.")
    dir: Folder | None = Field(
        None,
        description="ComfyUI's own folder: the agent starts it, and restarts it when it hangs. The COMFY_* variables "
        "of docs/settings.md say how. Unset: a ComfyUI that runs at the address is used.",
    )
    custom_nodes_dirs: tuple[Folder, ...] | None = Field(
        None,
        description="Folders of custom nodes besides its own, for the ComfyUI that the agent starts. Their code is "
        "run. Unset: those of `CUSTOM_NODES_DIRS`.",
    )
    input_dir: Folder | None = Field(None, description="Its input folder when the agent may empty it; with output_dir.")
    output_dir: Folder | None = Field(None, description="Its output folder when the agent may empty it.")
    temp_dir: Folder | None = Field(None, description="Its temp folder when the agent may empty it.")
    timeout_seconds: Seconds = Field(900, description="Time limit of a job, unless its steps ask for a longer one.")
    poll_interval_seconds: Seconds = Field(2, description="Least time between two progress notes of a job.")
    client_id: Line = Field("settee-agent", description="The agent's name in callbacks.")
    object_info_cache_seconds: Annotated[float, Field(ge=0)] = Field(
        45, description="How long what ComfyUI says of its nodes and models is believed."
    )
    model_refresh_delay_seconds: Annotated[float, Field(ge=0)] = Field(
        0.75, description="How long ComfyUI may take to list a model that was just placed, before it is asked again."
    )
    per_step_timeout_seconds: Annotated[float, Field(ge=0)] = Field(
        6, description="Time for each sampling step: many steps get more than timeout_seconds."
    )
    img2img_timeout_multiplier: Annotated[float, Field(ge=1)] = Field(
        1.5, description="How much longer a job that starts from a picture may take."
    )

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

    base_models: Folder = Field(description="ComfyUI's folder of checkpoints.")
    loras: Folder = Field(description="ComfyUI's folder of LoRAs.")
    workflows: Folder = Field(description="Where a job's `localPath` may name a workflow template.")
    outputs: Folder = Field(description="The archive of jobs is kept in its folder `logs`.")
    temp: Folder = Field(description="Working files of the running job, wiped after it: a RAM disk is best.")


class Cleanup(Section):
    """Models that are removed when a job ends."""

    delete_downloaded_loras: bool = Field(True, description="Remove ephemeral LoRAs that the job brought.")
    delete_downloaded_models: bool = Field(True, description="Remove ephemeral base models that the job brought.")


class Callbacks(Section):
    """How the control plane is notified."""

    base_url: Url | None = Field(
        None, description="Put in place of scheme and host of relative and loopback callback addresses."
    )
    allowed_hosts: tuple[Host, ...] | None = Field(
        None,
        description="Callbacks go to these hosts only: host, host:port, *.domain. Unset: to any; an empty list: none.",
    )
    verify_tls: bool = Field(True, description="Whether the receivers' certificates are checked.")
    timeout_seconds: Seconds = Field(10, description="Time limit of one request.")
    max_retries: Annotated[int, Field(ge=0, le=100)] = Field(
        3, description="Retries of a status callback; completion and failure are retried until they arrive."
    )
    retry_backoff_seconds: Annotated[float, Field(ge=0)] = Field(
        1, description="Pause before the first retry; each further one takes twice as long."
    )
    heartbeat_seconds: Seconds = Field(10, description="Time between two status callbacks while a state lasts.")
    signing_secrets: tuple[SecretStr, ...] = Field(
        (),
        description="Secrets (`whsec_…`) that callbacks are signed with, as Standard Webhooks describes; all of them.",
    )
    signing_secrets_file: Folder | None = Field(
        None, description="File with further ones, one a line; # begins a comment."
    )
    signing_secrets_env: Line | None = Field(
        None, description="Environment variable with further ones, comma-separated."
    )

    @field_validator("signing_secrets")
    @classmethod
    def _can_sign(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, secret in enumerate(secrets):
            if not is_signing_secret(secret.get_secret_value()):
                raise ValueError(f"number {number + 1} {SECRET_RULE}")
        return secrets

    def signing_keys(self) -> list[bytes]:
        return [signing_key(secret.get_secret_value()) for secret in self.signing_secrets]


class Auth(Section):
    """Access to the agent. Without any token it listens on loopback only."""

    tokens: tuple[SecretStr, ...] = Field((), description="Bearer tokens, each of which is enough.")
    tokens_file: Folder | None = Field(None, description="File with further ones, one a line; # begins a comment.")
    tokens_env: Line | None = Field(None, description="Environment variable with further ones, comma-separated.")

    @field_validator("tokens")
    @classmethod
    def _sendable(cls, tokens: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, token in enumerate(tokens):
            if not is_token(token.get_secret_value()):
                raise ValueError(f"number {number + 1} {TOKEN_RULE}")
        return tokens


#: What an Authorization header can carry after "Bearer " (RFC 9110's field values, without spaces).
TOKEN_RULE = "must be visible ASCII characters without spaces"  # noqa: S105 - no password


def is_token(text: str) -> bool:
    """Return True if a client can send this as a bearer token."""
    return re.fullmatch(r"[\x21-\x7e]+", text) is not None


def is_signing_secret(text: str) -> bool:
    """Return True if callbacks can be signed with it."""
    try:
        signing_key(text)
    except ValueError:
        return False
    return True


class Server(Section):
    """The address that the agent listens on."""

    host: Line | None = Field(
        None, description="Address to listen on. Unset: 0.0.0.0 when there is a token, else 127.0.0.1."
    )
    port: Port = Field(8081, description="Port to listen on.")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(16 * MIB, description="Largest request body, in bytes.")


class AgentConfig(Section):
    """The whole file."""

    minio: Minio
    comfyui: ComfyUI = Field(default_factory=ComfyUI)
    paths: Paths
    state_dir: Folder | None = Field(
        None, description="What must survive a restart: undelivered callbacks. Unset: `state` in paths.outputs."
    )
    persistent_model_keys: tuple[Line, ...] = Field((), description="Keys of models that stay, whatever a job says.")
    cleanup: Cleanup = Field(default_factory=Cleanup)
    callbacks: Callbacks = Field(default_factory=Callbacks)
    workflow_defaults: dict[str, Any] = Field(
        default_factory=dict, description="Values of workflow parameters that a job leaves out."
    )
    auth: Auth = Field(default_factory=Auth)
    server: Server = Field(default_factory=Server)

    @field_validator("workflow_defaults")
    @classmethod
    def _none_required(cls, values: dict[str, Any]) -> dict[str, Any]:
        if wrong := [name for name in REQUIRED_SAMPLING if name in values]:
            raise ValueError(f"must not hold {', '.join(wrong)}: every job says that itself")
        return values

    @model_validator(mode="after")
    def _nothing_of_ours_is_emptied(self) -> AgentConfig:
        emptied = {
            f"comfyui.{name}": folder
            for name in ("input_dir", "output_dir", "temp_dir")
            if (folder := getattr(self.comfyui, name))
        }
        emptied["paths.temp/workspace"] = self.workspace_dir
        kept = {f"paths.{name}": getattr(self.paths, name) for name in ("base_models", "loras", "workflows", "outputs")}
        for name, folder in emptied.items():
            real = Path(os.path.realpath(folder))
            for other, place in (*kept.items(), ("state_dir", self.state_folder)):
                there = Path(os.path.realpath(place))
                if real == there or real in there.parents:
                    raise ValueError(f"{name} is emptied for every job: it must not be or hold {other}")
        return self

    def secrets(self) -> list[str]:
        """Return the values of this file that must not be kept, shown or logged."""
        own = (self.minio.access_key, self.minio.secret_key, *self.auth.tokens, *self.callbacks.signing_secrets)
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
        return self.server.host or ("0.0.0.0" if self.auth.tokens else "127.0.0.1")  # noqa: S104 - with a token


# --- loading ---------------------------------------------------------------------------------------------------


def load(path: Path | str | None = None) -> AgentConfig:
    """Return the configuration of ``path``, or of the file that VISION_SUITE_AGENT_CONFIG names. Raises ConfigError."""
    path = path or os.environ.get(VARIABLE)
    if not path:
        raise ConfigError(f"there is no configuration: name a YAML file with --config or {VARIABLE}")
    return parse(read(path), f"the configuration {path}")


def parse(data: object, name: str = "the configuration") -> AgentConfig:
    """Return what a YAML file holds, checked. Raises ConfigError with all problems."""
    problems: list[Problem] = []
    given = filled(data, AgentConfig, name, EXAMPLE)
    rule = f"holds a token that cannot be sent: each {TOKEN_RULE}"
    given, tokens = with_secrets(given, "auth", "tokens", is_token, rule, problems)
    rule = f"holds a secret that cannot sign: each {SECRET_RULE}"
    given, _ = with_secrets(given, "callbacks", "signing_secrets", is_signing_secret, rule, problems)
    server = given.get("server")
    host = server.get("host") if isinstance(server, Mapping) else None
    if isinstance(host, str) and host and not tokens and not is_loopback(host):
        problem = "must be 127.0.0.1 (or another loopback address) while no token is set in auth"
        problems.append({"path": "server.host", "problem": problem})
    return checked(AgentConfig, given, name, problems)
