"""The worker's settings: the only place that reads the environment.

Every field is one environment variable of the same name in capitals. `NAME_FILE` names a file that holds the
value of a secret instead. docs/settings.md lists them all, and a test holds that table to this file.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from settee.base.errors import ConfigError, problem_line, problems_of

MIB = 1024 * 1024


def _default_workspace() -> Path:
    """Return the RAM disk where there is one, else (a laptop) the folder for temporary files."""
    shm = Path("/dev/shm")  # noqa: S108 - the RAM disk, of which only our own folder below is used
    root = shm if shm.is_dir() and os.access(shm, os.W_OK) else Path(tempfile.gettempdir())
    return root / "settee"


Names = Annotated[tuple[str, ...], NoDecode]
Positive = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Read with :func:`load`, from the environment alone; a bad value is named together with all other bad values."""

    model_config = SettingsConfigDict(
        case_sensitive=False, extra="ignore", frozen=True, env_ignore_empty=True, allow_inf_nan=False
    )

    # --- ComfyUI -------------------------------------------------------------------------------------
    comfy_url: str | None = Field(
        None,
        description="Address of a ComfyUI that is already running. Unset: the worker starts its own. "
        "Link `settee/comfy_nodes/settee_patches` into its `custom_nodes`: with it no node ends its thread of "
        "prompts, or stalls it.",
    )
    comfy_dir: Path = Field(Path("/comfyui"), description="Folder of the ComfyUI that the worker starts.")
    comfy_args: str = Field(
        "",
        description="Further arguments for that ComfyUI, as on a command line. Unless they choose a cache, it is "
        "`--cache-classic`: the tensors of the last prompt are kept, not those of earlier ones. `--cache-ram` keeps "
        "more while there is memory, so that models need not be loaded again when jobs with different ones alternate.",
    )
    comfy_python: str | None = Field(
        None, description="Python that runs it. Unset: the one in COMFY_DIR's venv, else the worker's own."
    )
    comfy_command: str | None = Field(
        None,
        description="Whole command instead of `python COMFY_DIR/main.py`, such as "
        "`/path/to/python -m settee.embedded`. Folder and port arguments are added; it runs in COMFY_DIR.",
    )
    custom_nodes_dirs: Names = Field(
        (),
        description="Folders of custom nodes in addition to COMFY_DIR/custom_nodes, for example on a network volume, "
        "comma-separated. Their code is run. What they need of Python: see docs/deploy.md.",
    )
    comfy_port: int = Field(8188, ge=0, le=65535, description="Its port on loopback; 0 picks a free one.")
    comfy_start_timeout_s: Positive = Field(
        600, description="How long ComfyUI may take from its start to its first answer."
    )
    comfy_input_dir: Path | None = Field(
        None,
        description="With COMFY_URL: its input folder, when the worker shares it. Emptied before and after every job.",
    )
    comfy_output_dir: Path | None = Field(
        None,
        description="With COMFY_URL: its output folder, when the worker shares it. Emptied before and after every job.",
    )
    comfy_temp_dir: Path | None = Field(
        None,
        description="With COMFY_URL: its temp folder, when the worker shares it. Emptied before and after every job.",
    )
    comfy_unresponsive_s: Positive = Field(
        60,
        description="ComfyUI counts as frozen when it answers nothing for this long during a job. Where nothing "
        "listens at COMFY_URL, that is reported after 10 s.",
    )
    comfy_stall_s: Positive = Field(
        20,
        description="Its executor counts as dead when a submitted prompt, next in line, has not begun for this long.",
    )
    comfy_interrupt_s: Positive = Field(
        20, description="How long a stopped job may take to leave ComfyUI before ComfyUI is restarted."
    )
    comfy_history_s: Positive = Field(15, description="How long to wait for the history of a prompt that has ended.")
    comfy_org_api_key: SecretStr | None = Field(
        None, description="Comfy.org key for API nodes; a job's own `comfy_org_api_key` takes precedence."
    )
    warmup_workflow: Path | None = Field(
        None, description="A workflow in API format that runs once before the worker takes jobs."
    )

    # --- Models --------------------------------------------------------------------------------------
    models: str = Field(
        "",
        description="Models to place before jobs need them: `RepoID[@revision]:Filename:Target[:LocalName]`, "
        "`s3://bucket/key:Target[:LocalName]` or `https://…:Target[:LocalName]`, each optionally with `#sha256=HEX`, "
        "separated by commas. See docs/models.md.",
    )
    models_file: Path | None = Field(None, description="The same as a YAML or JSON file.")
    models_dir: Path | None = Field(None, description="ComfyUI's models folder. Unset: COMFY_DIR/models.")
    models_extra_dirs: Names = Field(
        ("/runpod-volume/models",),
        description="Folders laid out like ComfyUI's models folder, for example on a network volume: ComfyUI reads "
        "them, and a model found there is linked instead of downloaded. Comma-separated.",
    )
    host_cache_dir: Path = Field(
        Path("/runpod-volume/huggingface-cache/hub"),
        description="RunPod's cache of Hugging Face models: cached files are linked and take no disk space.",
    )
    hf_token: SecretStr | None = Field(None, description="Hugging Face token, for private and gated models.")
    hf_endpoint: str = Field("https://huggingface.co", description="The Hub, or a mirror that speaks its protocol.")
    models_s3_endpoint_url: str | None = Field(
        None, description="S3 endpoint of `s3://` models and of the mirror. Unset: BUCKET_ENDPOINT_URL and its keys."
    )
    models_s3_access_key_id: SecretStr | None = Field(None, description="Its access key.")
    models_s3_secret_access_key: SecretStr | None = Field(None, description="Its secret key.")
    models_s3_region: str | None = Field(None, description="Its region. Default: read from the endpoint.")
    models_s3_path_style: bool = Field(True, description="Address as endpoint/bucket/key (MinIO wants it).")
    models_mirror: str | None = Field(
        None,
        pattern=r"^s3://[^/]+(/.*)?$",
        description="`s3://bucket/prefix` that is asked for `Target/LocalName` before Hugging Face or a URL is.",
    )
    models_disk_budget_gb: float | None = Field(
        None,
        gt=0,
        description="Most disk for models that jobs brought, in GB (10^9 bytes): the least recently used go first.",
    )
    models_connections: int = Field(8, ge=1, le=64, description="Most connections of all model downloads together.")
    models_timeout_s: Positive = Field(7200, description="Time limit for one model's download.")
    models_read_ahead: bool = Field(
        True, description="Read a job's models into the page cache while ComfyUI starts or fetches others."
    )
    allow_job_models: bool = Field(True, description="Let a job bring models of its own (`models`).")

    # --- Jobs ----------------------------------------------------------------------------------------
    job_timeout_s: Positive = Field(3600, description="Time limit of a job that names none.")
    max_job_timeout_s: Positive = Field(86400, description="The longest limit that a job may ask for.")
    refresh_worker: bool = Field(False, description="Ask RunPod for a fresh worker after every job.")
    workspace_dir: Path = Field(
        default_factory=_default_workspace,
        description="Folder on the RAM disk that holds ComfyUI's input, output and temp, all emptied before and after "
        "every job: one of its own for every worker.",
    )
    allow_debug: bool = Field(True, description="Let a job's `debug: true` keep its files until the next job.")

    # --- Limits --------------------------------------------------------------------------------------
    max_request_mb: Positive = Field(64, description="Largest request: its JSON, in MiB.")
    max_files: int = Field(64, ge=0, description="Most input files of one job, `images` and `files` together.")
    max_file_mb: Positive = Field(2048, description="Largest single input file once decoded or downloaded, in MiB.")
    input_volume_dir: Path | None = Field(
        None,
        description="Folder of a network volume, below which jobs may name input files as `volume://path/in/it.png`. "
        "They are read, never written. Give it one of its own: any job can read all of it.",
    )
    max_pixels: int = Field(100_000_000, gt=0, description="Most pixels (width x height x frames) of an input image.")
    max_nodes: int = Field(5000, gt=0, description="Most nodes of a workflow.")
    allowed_nodes: Names = Field((), description="When set, only these node classes may be used (names or patterns).")
    denied_nodes: Names = Field(
        (),
        description="Node classes that are refused (names or patterns). Both lists are about the workflow that is "
        "sent, old names of classes as well: nodes that an allowed class adds or starts are not checked.",
    )
    download_timeout_s: Positive = Field(300, description="Time limit for one URL or S3 input.")

    # --- Delivery ------------------------------------------------------------------------------------
    bucket_endpoint_url: str | None = Field(None, description="S3 endpoint; with the two keys it turns S3 delivery on.")
    bucket_access_key_id: SecretStr | None = Field(None, description="S3 access key.")
    bucket_secret_access_key: SecretStr | None = Field(None, description="S3 secret key.")
    bucket_name: str | None = Field(
        None, description="Bucket. Default: the month and year as MM-YY, as RunPod's own uploader does."
    )
    bucket_region: str | None = Field(None, description="S3 region. Default: read from the endpoint, else us-east-1.")
    bucket_path_style: bool = Field(True, description="Address as endpoint/bucket/key (MinIO wants it).")
    bucket_verify_tls: bool = Field(
        True,
        description="Check the certificate of BUCKET_ENDPOINT_URL. Without that, a server on the way may read along: "
        "better name its CA's file in AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE.",
    )
    bucket_prefix: str = Field(
        "{job_id}", description="Key prefix template: {job_id}, {date}, {time}, {node_id}, {kind}."
    )
    bucket_expires_s: int = Field(604_800, ge=1, le=604_800, description="Lifetime of presigned URLs, in seconds.")
    bucket_public_url: str | None = Field(
        None, description="Base of public URLs (for example of a CDN) to return instead of presigned ones."
    )
    allow_private_s3config: bool = Field(
        False, description="Let a job's `s3Config` name an endpoint that is not on the public Internet."
    )
    delivery: Literal["auto", "base64", "s3"] = Field(
        "auto",
        description="Where results go when the job names no destination: auto is S3 when configured, else base64.",
    )
    result_volume_dir: Path = Field(
        Path("/runpod-volume/settee-results"),
        description="Folder for results over RunPod's cap without S3; used only when its volume is mounted.",
    )

    # --- Sealing -------------------------------------------------------------------------------------
    encryption_key: SecretStr | None = Field(
        None, description="Fernet key (comma-separated for rotation, newest first) that opens and seals jobs."
    )
    require_encryption: bool = Field(False, description="Refuse jobs that are not sealed.")

    # --- Logs ----------------------------------------------------------------------------------------
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for a person or for a machine.")

    # --- RunPod --------------------------------------------------------------------------------------
    run_result_mb: Positive = Field(10, description="RunPod's cap for a /run result, in MB (10^6 bytes).")
    runsync_result_mb: Positive = Field(20, description="RunPod's cap for a /runsync result, in MB.")
    progress_interval_s: Positive = Field(1.0, description="Least time between two progress updates of a job.")
    fast_loop: bool = Field(
        True, description="Take the next job as soon as the slot is free, instead of the SDK's 1 s sleep."
    )
    early_jobs: bool = Field(
        True,
        description="Take the first job while ComfyUI still starts, so that its models are fetched and read meanwhile. "
        "Without, and with WARMUP_WORKFLOW, RunPod's fitness check waits until ComfyUI answers.",
    )
    shutdown_grace_s: float = Field(
        3.0, ge=0, description="How long a running job may go on after SIGTERM before it is canceled and reported."
    )
    serve_api_locally: bool = Field(
        False, description="Serve the SDK's local API on 0.0.0.0:8000 instead of taking jobs from RunPod."
    )
    runpod_allow_private_download_urls: bool = Field(
        False, description="Let a job's input files and models come from URLs that are not on the public Internet."
    )

    @field_validator("allowed_nodes", "custom_nodes_dirs", "denied_nodes", "models_extra_dirs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Split comma-separated text into names."""
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        bucket = (self.bucket_endpoint_url, self.bucket_access_key_id, self.bucket_secret_access_key)
        store = (self.models_s3_endpoint_url, self.models_s3_access_key_id, self.models_s3_secret_access_key)
        for owner, given in (("BUCKET", bucket), ("MODELS_S3", store)):
            if any(given) and not all(given):
                names = f"{owner}_ENDPOINT_URL, {owner}_ACCESS_KEY_ID and {owner}_SECRET_ACCESS_KEY"
                raise ValueError(f"{names} belong together: set all three or none")
        if self.models_mirror and not (all(store) or all(bucket)):
            raise ValueError("MODELS_MIRROR needs MODELS_S3_ENDPOINT_URL (or BUCKET_ENDPOINT_URL) and its two keys")
        if self.delivery == "s3" and not all(bucket):
            raise ValueError("DELIVERY=s3 needs BUCKET_ENDPOINT_URL and its two keys")
        if self.require_encryption and not self.encryption_key:
            raise ValueError("REQUIRE_ENCRYPTION needs ENCRYPTION_KEY")
        return self

    @property
    def models_folder(self) -> Path:
        """Return ComfyUI's models folder."""
        return self.models_dir or self.comfy_dir / "models"

    @property
    def max_file_bytes(self) -> int:
        return int(self.max_file_mb * MIB)

    @property
    def has_bucket(self) -> bool:
        return self.bucket_endpoint_url is not None


SECRETS = tuple(name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None)


def _secrets_from_files() -> dict[str, str]:
    """Read `NAME_FILE` for each secret whose `NAME` is unset, as container platforms mount them."""
    found = {}
    for name in SECRETS:
        path = os.environ.get(f"{name.upper()}_FILE")
        if path and not os.environ.get(name.upper()):
            try:
                found[name] = Path(path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(f"{name.upper()}_FILE: {path} cannot be read: {error.strerror}") from error
    return found


def load(**overrides: Any) -> Settings:
    """Read the environment. Raises ConfigError that names every bad variable at once, without its value."""
    try:
        return Settings(**{**_secrets_from_files(), **overrides})
    except ValidationError as error:
        found = problems_of(error.errors(include_input=False))
        problems = [problem_line({**each, "path": each["path"].upper()}) for each in found]
        raise ConfigError("; ".join(problems), details={"problems": problems}) from None


def secret_named(name: str) -> SecretStr | None:
    """Return the environment variable that MODELS_FILE names as an entry's token; None when it is unset or empty."""
    value = os.environ.get(name, "").strip()
    return SecretStr(value) if value else None


def child_environment() -> dict[str, str]:
    """Return the environment for ComfyUI: the worker's, without secrets that custom nodes have no business with."""
    hidden = {name.upper() for name in SECRETS} | {f"{name.upper()}_FILE" for name in SECRETS}
    hidden |= {"RUNPOD_AI_API_KEY", "RUNPOD_API_KEY"}
    return {name: value for name, value in os.environ.items() if name.upper() not in hidden}
