"""The agent's configuration as the engine's settings, and where models lie.

The engine knows one models folder with a folder for each kind in it; the agent is given two folders, of checkpoints and
of LoRAs. Mostly those are `<models>/checkpoints` and `<models>/loras`, and `<models>` is it. Otherwise a folder of the
agent's own, in `state_dir`, shows both as links.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path, PurePath
from typing import Any

from settee.base import settings
from settee.base.errors import ConfigError
from settee.base.settings import Settings
from settee.doors.agent.config import AgentConfig

#: Setting of the engine → the option that is its value.
_OPTIONS = {
    "bucket_access_key_id": "minio.access_key",
    "bucket_region": "minio.region",
    "bucket_secret_access_key": "minio.secret_key",
    "bucket_verify_tls": "minio.verify_tls",
    "comfy_input_dir": "comfyui.input_dir",
    "comfy_output_dir": "comfyui.output_dir",
    "comfy_temp_dir": "comfyui.temp_dir",
    "job_timeout_s": "comfyui.timeout_seconds",
    "progress_interval_s": "comfyui.poll_interval_seconds",
}
#: How this door's users know what the engine calls by another name: options, and what a dispatch states itself.
SPELLINGS = {
    **{name.upper(): option for name, option in _OPTIONS.items()},
    "BUCKET_ENDPOINT_URL": "minio.endpoint",
    "BUCKET_NAME": "output.bucket",
    "COMFY_DIR": "comfyui.dir",
    "COMFY_PORT": "comfyui.port",
    "COMFY_URL": "comfyui.api_url",
    "MAX_JOB_TIMEOUT_S": "comfyui.timeout_seconds",
    "MODELS_DIR": "paths.base_models and paths.loras",
    "MODELS_S3_ACCESS_KEY_ID": "minio.access_key",
    "MODELS_S3_ENDPOINT_URL": "minio.endpoint",
    "MODELS_S3_SECRET_ACCESS_KEY": "minio.secret_key",
    "WORKSPACE_DIR": "paths.temp",
    "timeout_s": "comfyui.timeout_seconds",
}
_NAMES = re.compile(rf"\b(?:{'|'.join(SPELLINGS)})\b")


def spelled(text: str) -> str:
    """Return the engine's message with this door's names of settings. Variables of the environment keep theirs."""
    text = text.replace("to MODELS, or to the job's models", "to MODELS")  # a dispatch has no such key
    return _NAMES.sub(lambda match: SPELLINGS[match[0]], text)


#: The longest that any job may run unless its steps or its configuration ask for more, in seconds.
_DAY_S = 86_400.0


@dataclass(frozen=True)
class ModelPlaces:
    """The folders that the engine puts models in: ``ModelEntry.target`` is one of ``targets``."""

    #: What the engine takes for ComfyUI's models folder.
    models_dir: Path
    #: Below it, the places of `paths.base_models` ("checkpoints", or "checkpoints/sdxl") and of `paths.loras`.
    targets: tuple[str, str]
    #: Links that must be there: in ``models_dir``, and where they lead.
    links: tuple[tuple[Path, Path], ...] = ()


def model_places(config: AgentConfig) -> ModelPlaces:
    """Return the folders of models. Looks at names only.

    A folder below one that is called `checkpoints` (or `loras`) is a subfolder of ComfyUI's, whose name ComfyUI puts
    before a model's: for `…/models/checkpoints/sdxl` the target is `checkpoints/sdxl`.
    """
    base, base_below = _split(config.paths.base_models, "checkpoints")
    loras, loras_below = _split(config.paths.loras, "loras")
    targets = str(PurePath("checkpoints", base_below)), str(PurePath("loras", loras_below))
    if base.name == "checkpoints" and loras.name == "loras" and base.parent == loras.parent:
        return ModelPlaces(base.parent, targets)
    own = config.state_folder / "models"
    return ModelPlaces(own, targets, links=((own / "checkpoints", base), (own / "loras", loras)))


def _split(folder: Path, kind: str) -> tuple[Path, PurePath]:
    """ComfyUI's folder of a kind, and the way from there to ``folder``."""
    for candidate in (folder, *folder.parents):
        if candidate.name == kind:
            return candidate, folder.relative_to(candidate)
    return folder, PurePath()


def make_folders(config: AgentConfig) -> None:
    """Make what is missing of the agent's folders, and the links of :func:`model_places`. Raises ConfigError."""
    places, paths = model_places(config), config.paths
    folders = [paths.base_models, paths.loras, paths.workflows, paths.outputs, paths.temp, config.state_folder]
    for folder in (*folders, *(link.parent for link, _ in places.links)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    for link, folder in places.links:
        _link(link, folder)


def _link(link: Path, folder: Path) -> None:
    try:
        if link.is_symlink():
            if os.readlink(link) == str(folder):
                return
            link.unlink(missing_ok=True)  # the configuration named another folder before
        link.symlink_to(folder, target_is_directory=True)
    except OSError as error:
        raise ConfigError(
            f"{link} cannot be made a link to {folder} ({error.strerror}): let paths.base_models and paths.loras be "
            "<models>/checkpoints and <models>/loras, or state_dir a folder of a file system with links"
        ) from error


def to_settings(config: AgentConfig) -> Settings:
    """The engine's settings. What the configuration does not name comes from the environment (docs/settings.md).

    Raises ConfigError for a variable there that is wrong. A message that names one of those here is :func:`spelled`.
    """
    comfyui = config.comfyui
    own: dict[str, Any] = {name: attrgetter(option)(config) for name, option in _OPTIONS.items()}
    if comfyui.dir is not None:
        own |= {"comfy_dir": comfyui.dir, "comfy_port": comfyui.port}
    if comfyui.custom_nodes_dirs is not None:
        own["custom_nodes_dirs"] = tuple(map(str, comfyui.custom_nodes_dirs))
    return settings.load(
        **own,
        comfy_url=comfyui.url if comfyui.dir is None else None,
        models_dir=model_places(config).models_dir,
        # The agent's jobs bring models, from its own S3 server; their addresses are never a caller's.
        allow_job_models=True,
        models_s3_endpoint_url=None,
        models_s3_access_key_id=None,
        models_s3_secret_access_key=None,
        max_job_timeout_s=max(_DAY_S, comfyui.timeout_seconds * comfyui.img2img_timeout_multiplier),
        workspace_dir=config.workspace_dir,
        bucket_endpoint_url=config.minio.url,
        bucket_path_style=True,
        bucket_name=None,
        bucket_public_url=None,
        delivery="s3",
        require_encryption=False,
    )
