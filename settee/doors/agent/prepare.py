"""One dispatched job, from its envelope to what the engine is asked for, and from the engine's result to what is
reported. The engine does the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from settee.base.job import Artifact, Destination, Job, JobOptions, Result
from settee.base.settings import Settings
from settee.comfyui.graph import with_values
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.rewrite import linked, replaced, respelled
from settee.comfyui.seeds import draw_seeds
from settee.comfyui.workflow import Workflow
from settee.delivery.keys import safe_id, safe_segment
from settee.doors.agent import contract
from settee.doors.agent.assets import Assets
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.engine_settings import spelled
from settee.doors.agent.envelope import Binding, Envelope, Override
from settee.doors.agent.graph import validate
from settee.doors.agent.graph.bindings import bound
from settee.doors.agent.graph.loras import chained
from settee.doors.agent.graph.parameters import Context, context
from settee.engine.request import Delivery, JobRequest
from settee.models.required import names_of


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


def plan(
    envelope: Envelope,
    config: AgentConfig,
    graph: Workflow,
    assets: Assets,
    registry: NodeRegistry,
    draw: Callable[[], int],
) -> Plan:
    """Put every value in its place, and check that it has an effect there. Raises InvalidRequest with all problems."""
    values = context(envelope, assets.placed, defaults=config.workflow_defaults, draw=draw)
    graph = chained(linked(bound(graph, envelope, values), registry), values.loras)
    envelope = _renamed(envelope, graph, registry)
    graph, respelt = respelled(replaced(graph, registry), registry, names_of(assets.entries))
    drawn = draw_seeds(graph, registry, every=False)
    graph = with_values(graph, drawn.values)
    validate.check(graph, envelope, values, registry)
    seeds = [f"drawn, as it was -1: {place} = {seed}" for place, seed in drawn.shown().items()]
    checked = validate.warnings(graph, envelope, values, registry)
    warnings = (*envelope.warnings, *checked, *respelt, *seeds, *drawn.stuck)
    return Plan(envelope, values, graph, assets, validate.unplaced(graph, envelope, values), warnings)


def _renamed(envelope: Envelope, graph: Workflow, registry: NodeRegistry) -> Envelope:
    """Return the envelope with the names that inputs get where :func:`replaced` gives their node another class."""
    names = {
        (node_id, f"inputs.{each['old_id']}"): f"inputs.{each['new_id']}"
        for node_id, node in graph.items()
        for each in registry.replacement(node["class_type"]).get("input_mapping") or ()
        if "old_id" in each
    }

    def moved(part: Binding | Override) -> Binding | Override:
        return part.model_copy(update={"path": names.get((part.node, part.path), part.path)})

    changed = {
        name: tuple(map(moved, getattr(envelope, name))) for name in ("workflow_parameters", "workflow_overrides")
    }
    return envelope.model_copy(update=changed) if names else envelope


def job_for(
    ready: Plan, config: AgentConfig, settings: Settings, prompt_id: str, *, spent_s: float = 0.0
) -> tuple[Job, dict[int, str]]:
    """Return what the engine is asked for, and the dict that will hold the keys of its outputs by their number.

    ``spent_s``: seconds of the job's time limit that are gone already.
    """
    envelope, values, keys = ready.envelope, ready.context.values, dict[int, str]()
    prefix = envelope.output.prefix.strip("/") or f"comfy-outputs/{safe_id(envelope.job_id)}"

    def key(number: int, artifact: Artifact) -> str:
        suffix = PurePosixPath(safe_segment(artifact.filename)).suffix.lower() or ".bin"
        keys[number] = f"{prefix}/{number + 1:02d}_{values['seed']}{suffix}"
        return keys[number]

    def metadata(_: Artifact, sha256: str) -> dict[str, str]:
        return {
            **{name: str(values[name]) for name in ("prompt", "negative_prompt", "seed", "steps")},
            "user": envelope.user.username,
            "job_id": envelope.job_id,
            "model": values["base_model_name"],
            "loras": json.dumps(values["loras_metadata"], ensure_ascii=False),
            "sha256": sha256,
        }

    from_picture = any(node["class_type"].startswith(("LoadImage", "VAEEncode")) for node in ready.workflow.values())
    limit = config.comfyui.time_limit_s(int(values["steps"]), from_picture=from_picture)
    request = JobRequest(
        workflow=ready.workflow,
        models=ready.assets.entries,
        delivery=Delivery(mode="s3"),
        timeout_s=max(1.0, min(limit, settings.max_job_timeout_s) - spent_s),
    )
    destination = Destination(bucket=envelope.output.bucket, key=key, metadata=metadata)
    options = JobOptions(destination=destination, own_paths=ready.context.own_paths, takes_files=False)
    return Job(id=envelope.job_id, request=request, prompt_id=prompt_id, options=options), keys


# --- what is reported -------------------------------------------------------------------------------------------


def result_of(ready: Plan, result: Result, keys: Mapping[int, str], outputs: Path) -> contract.JobResult:
    """Return what the dispatcher and GET show of a job that succeeded.

    Paths are where ComfyUI wrote each file, below its folder of ``outputs``; they go with the job.
    """
    envelope, artifacts = ready.envelope, []
    for number, output in enumerate(result.outputs):
        relative = f"{output.comfy_subfolder}/{output.filename}".lstrip("/")
        artifacts.append(
            contract.Artifact(
                kind=output.kind.value,
                node_id=output.node_id,
                filename=output.filename,
                subfolder=output.subfolder,
                rel_path=relative,
                abs_path=str(outputs / relative),
                mime=output.media_type,
                s3=contract.S3Place(bucket=envelope.output.bucket, key=keys[number], url=output.url or ""),
                sha256=output.sha256,
                bytes=output.size,
            )
        )
    meta = contract.Meta(
        user=contract.UserShown(id=envelope.user.id, username=envelope.user.username),
        workflow=contract.WorkflowShown(id=envelope.workflow.id, version=envelope.workflow.version),
        seed_drawn=ready.context.seed_drawn,
        timings_ms=result.timings,
    )
    warnings = [*ready.warnings, *map(spelled, result.warnings)]
    return contract.JobResult(artifacts=artifacts, params=params(ready), meta=meta, warnings=warnings)


#: Inputs of samplers, latents and loaders that state what a parameter would have, where the graph has its own.
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


def params(ready: Plan) -> contract.Params:
    """Return the values it was made with, as far as the graph states them."""
    values = {**ready.context.values, "baseModel": ready.context.values["base_model_name"]}
    for name in ready.unplaced & _INPUTS.keys():
        values[name] = _literal(ready.workflow, *_INPUTS[name])
    return contract.Params(
        model=values["baseModel"],
        vae=_literal(ready.workflow, ["vae_name"], (str,)),
        clip=_literal(ready.workflow, ["clip_name"], (str,)),
        cfg=values["cfg_scale"],
        denoise=_literal(ready.workflow, ["denoise"], (float, int)),
        loras=values["loras_metadata"],
        **{name: values[name] for name in ("seed", "steps", "sampler", "scheduler", "width", "height")},
    )


def _literal(workflow: Workflow, names: Sequence[str], kinds: tuple[type, ...]) -> Any:
    """Return the one value of a kind that inputs of these names have in the graph; None without one or with several."""
    given = [node["inputs"].get(name) for node in workflow.values() for name in names]
    values = {value for value in given if isinstance(value, kinds) and not isinstance(value, bool)}
    return values.pop() if len(values) == 1 else None
