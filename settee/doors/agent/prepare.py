"""One dispatched job, from its envelope to what the engine is asked for, and from the engine's result to what is
reported. The engine does the rest."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from settee.base.job import Artifact, Destination, Job, JobOptions, Result
from settee.base.settings import Settings
from settee.comfyui.graph import with_values
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.rewrite import linked, replaced, respelled
from settee.comfyui.seeds import draw_seeds
from settee.comfyui.workflow import Workflow
from settee.delivery.keys import safe_id, safe_segment
from settee.doors.agent.assets import Assets
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.contract import Artifact as ArtifactShown
from settee.doors.agent.contract import JobResult, LoraParams, Meta, Params, S3Place, UserShown, WorkflowShown
from settee.doors.agent.envelope import Binding, Envelope, Override
from settee.doors.agent.graph import validate
from settee.doors.agent.graph.bindings import bound
from settee.doors.agent.graph.loras import chained
from settee.doors.agent.graph.parameters import Context, context
from settee.doors.agent.storage import MOST_BYTES, Storage, parsed, wrong
from settee.engine.request import Delivery, JobRequest
from settee.models.required import names_of

log = logging.getLogger(__name__)

_Placed = TypeVar("_Placed", Binding, Override)


@dataclass(frozen=True)
class Plan:
    """A job that is ready for the engine."""

    envelope: Envelope
    context: Context
    workflow: Workflow = field(repr=False)
    assets: Assets
    #: Names of parameters that the graph has no place for: it used values of its own.
    unplaced: frozenset[str] = frozenset()
    #: For the dispatcher.
    warnings: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        return int(self.context.values["seed"])


def template(envelope: Envelope, storage: Storage, workflows: Path, check: Callable[[], None]) -> Workflow:
    """The workflow that the envelope names. Raises InvalidRequest, DownloadFailed, and what ``check`` raises."""
    source = envelope.workflow
    if source.inline is not None:
        return source.inline
    if source.local_path is not None:
        return _local(source.local_path, workflows)
    assert source.minio_key is not None
    return storage.workflow(envelope.workflow_bucket, source.minio_key, check)


def _local(name: str, workflows: Path) -> Workflow:
    """Only inside the workflows folder, links followed."""
    root = Path(os.path.realpath(workflows))
    path = Path(os.path.realpath(root / name))
    what = "workflow.localPath"
    if root not in path.parents:
        raise wrong(what, "must name a file in the agent's workflows folder")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise wrong(what, "names no file in the agent's workflows folder") from error
    return parsed(content, what, "the file")


def plan(
    envelope: Envelope,
    config: AgentConfig,
    graph: Workflow,
    assets: Assets,
    registry: NodeRegistry,
    draw: Callable[[], int],
) -> Plan:
    """Every value in its place, and checked to have an effect there. Raises InvalidRequest with all problems."""
    values = context(envelope, names=assets.names, defaults=config.workflow_defaults, draw=draw)
    graph = chained(linked(bound(graph, envelope, values), registry), values.loras)
    envelope = _renamed(envelope, graph, registry)
    graph = replaced(graph, registry)
    graph, respelt = respelled(graph, registry, names_of(assets.entries))
    drawn = draw_seeds(graph, registry, every=False)
    graph = with_values(graph, drawn.values)
    validate.check(graph, envelope, values, registry)
    seeds = [f"drawn, as it was -1: {place} = {seed}" for place, seed in drawn.shown().items()]
    landed = validate.warnings(graph, envelope, values, registry)
    said = (*envelope.warnings, *landed, *respelt, *seeds, *drawn.stuck)
    return Plan(envelope, values, graph, assets, validate.unplaced(graph, envelope, values), said)


def _renamed(envelope: Envelope, graph: Workflow, registry: NodeRegistry) -> Envelope:
    """The envelope with the names that inputs get where :func:`replaced` gives their node another class."""
    names = {
        (node_id, f"inputs.{each['old_id']}"): f"inputs.{each['new_id']}"
        for node_id, node in graph.items()
        for each in registry.replacement(node["class_type"]).get("input_mapping") or ()
        if "old_id" in each
    }
    if not names:
        return envelope

    def moved(part: _Placed) -> _Placed:
        return part.model_copy(update={"path": names.get((part.node, part.path), part.path)})

    changed = {
        "workflow_parameters": tuple(map(moved, envelope.workflow_parameters)),
        "workflow_overrides": tuple(map(moved, envelope.workflow_overrides)),
    }
    return envelope.model_copy(update=changed)


def job_for(
    ready: Plan, config: AgentConfig, settings: Settings, prompt_id: str, *, spent_s: float = 0.0
) -> tuple[Job, dict[int, str]]:
    """Return what the engine is asked for, and the dict that will hold the keys of its outputs by their number.

    ``spent_s``: seconds of the job's time limit that are gone already.
    """
    envelope, keys = ready.envelope, dict[int, str]()
    prefix = envelope.output.prefix.strip("/") or f"comfy-outputs/{safe_id(envelope.job_id)}"

    def key(number: int, artifact: Artifact) -> str:
        suffix = PurePosixPath(safe_segment(artifact.filename)).suffix.lower() or ".bin"
        keys[number] = f"{prefix}/{number + 1:02d}_{ready.seed}{suffix}"
        return keys[number]

    from_picture = any(node["class_type"].startswith(("LoadImage", "VAEEncode")) for node in ready.workflow.values())
    limit = config.comfyui.time_limit_s(int(ready.context.values["steps"]), from_picture=from_picture)
    request = JobRequest(
        workflow=ready.workflow,
        models=ready.assets.entries,
        delivery=Delivery(mode="s3"),
        timeout_s=max(1.0, min(limit, settings.max_job_timeout_s) - spent_s),
    )
    destination = Destination(
        bucket=envelope.output.bucket, key=key, metadata=lambda _, sha256: _metadata(ready, sha256)
    )
    job = Job(
        id=envelope.job_id,
        request=request,
        prompt_id=prompt_id,
        options=JobOptions(destination=destination, own_paths=ready.context.own_paths, takes_files=False),
    )
    return job, keys


def _metadata(ready: Plan, sha256: str) -> dict[str, str]:
    values = ready.context.values
    return {
        "prompt": str(values["prompt"]),
        "negative_prompt": str(values["negative_prompt"]),
        "seed": str(ready.seed),
        "steps": str(values["steps"]),
        "user": ready.envelope.user.username,
        "job_id": ready.envelope.job_id,
        "model": ready.assets.names.base_model,
        "loras": json.dumps([use.shown() for use in ready.context.loras], ensure_ascii=False),
        "sha256": sha256,
    }


def result_of(
    ready: Plan, result: Result, keys: Mapping[int, str], outputs: Path, warnings: Sequence[str]
) -> JobResult:
    """Return what the dispatcher and GET show of a job that succeeded."""
    return JobResult(
        artifacts=_artifacts(ready, result, keys, outputs),
        params=params(ready),
        meta=_meta(ready, result),
        warnings=[*ready.warnings, *warnings],
    )


def _artifacts(ready: Plan, result: Result, keys: Mapping[int, str], outputs: Path) -> list[ArtifactShown]:
    """Paths are where ComfyUI wrote each, below its folder of outputs; they go with the job."""
    found = []
    for number, output in enumerate(result.outputs):
        relative = f"{output.comfy_subfolder}/{output.filename}".lstrip("/")
        found.append(
            ArtifactShown(
                kind=output.kind.value,
                node_id=output.node_id,
                filename=output.filename,
                subfolder=output.subfolder,
                rel_path=relative,
                abs_path=str(outputs / relative),
                mime=output.media_type,
                s3=S3Place(bucket=ready.envelope.output.bucket, key=keys[number], url=output.url or ""),
                sha256=output.sha256,
                bytes=output.size,
            )
        )
    return found


#: Inputs of samplers, latents and loaders that say what a parameter would have, where the graph has its own.
_INPUTS: dict[str, tuple[tuple[str, ...], tuple[type, ...]]] = {
    "baseModel": (("ckpt_name", "unet_name"), (str,)),
    "seed": (("seed", "noise_seed"), (int,)),
    "steps": (("steps",), (int,)),
    "cfg_scale": (("cfg",), (float, int)),
    "sampler": (("sampler_name",), (str,)),
    "scheduler": (("scheduler",), (str,)),
    "width": (("width",), (int,)),
    "height": (("height",), (int,)),
}


def params(ready: Plan) -> Params:
    """Return the values it was made with, as far as the graph states them."""
    values = {**ready.context.values, "baseModel": ready.assets.names.base_model}
    for name in ready.unplaced & _INPUTS.keys():
        inputs, kinds = _INPUTS[name]
        values[name] = _literal(ready.workflow, inputs, *kinds)
    return Params(
        model=values["baseModel"],
        vae=_literal(ready.workflow, ["vae_name"], str),
        clip=_literal(ready.workflow, ["clip_name"], str),
        seed=values["seed"],
        steps=values["steps"],
        cfg=values["cfg_scale"],
        sampler=values["sampler"],
        scheduler=values["scheduler"],
        denoise=_literal(ready.workflow, ["denoise"], float, int),
        width=values["width"],
        height=values["height"],
        loras=[LoraParams(**use.shown()) for use in ready.context.loras],
    )


def _literal(workflow: Workflow, names: Sequence[str], *kinds: type) -> Any:
    """Return the one value of a kind that inputs of these names have in the graph; None without one or with several."""
    given = [node["inputs"].get(name) for node in workflow.values() for name in names]
    values = {value for value in given if isinstance(value, kinds) and not isinstance(value, bool)}
    return values.pop() if len(values) == 1 else None


def _meta(ready: Plan, result: Result) -> Meta:
    envelope = ready.envelope
    return Meta(
        user=UserShown(id=envelope.user.id, username=envelope.user.username),
        workflow=WorkflowShown(id=envelope.workflow.id, version=envelope.workflow.version),
        seed_drawn=ready.context.seed_drawn,
        timings_ms=result.timings,
    )
