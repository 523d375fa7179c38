"""Examples of callbacks and of GET /jobs/{id}, from real runs, with neutral ids: docs/agent-api.md shows them, too."""

from __future__ import annotations

from typing import Any

from settee.doors.agent.dispatch.example import EXAMPLE

_JOB_ID: str = EXAMPLE["jobId"]
_PROMPT_ID = "0b9f2a51-7c3d-4e86-a1f4-6d2c8b7e9035"
_KEY = f"{EXAMPLE['output']['prefix']}/01_987654321.png"
_PROGRESS = {"phase": "running", "percent": 68.8, "node": "6", "node_type": "KSampler", "step": 40, "max": 80}

_ARTIFACT = {
    "kind": "images",
    "node_id": "8",
    "filename": "render_00001_.png",
    "subfolder": "",
    "rel_path": "settee-0b9f2a51-7c3d/render_00001_.png",
    "abs_path": "/opt/comfyui/output/settee-0b9f2a51-7c3d/render_00001_.png",
    "mime": "image/png",
    "sha256": "e6918ee0039762372c36eb848b2d0716aa852f74bed2bd742c187263c4de6179",
    "bytes": 551430,
    "s3": {
        "bucket": "generator-outputs",
        "key": _KEY,
        "url": f"http://127.0.0.1:9000/generator-outputs/{_KEY}?X-Amz-Expires=604800&X-Amz-Signature=…",
    },
}
_PARAMS = {
    "model": "sdxl_base_1.0.safetensors",
    "vae": None,
    "clip": None,
    "seed": 987654321,
    "steps": 80,
    "cfg": 7.5,
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "denoise": 1.0,
    "width": 832,
    "height": 1216,
    "loras": [
        {
            "name": "cyber_fantasy.safetensors",
            "key": "models/loras/cyber_fantasy.safetensors",
            "strength_model": 1.0,
            "strength_clip": 1.0,
        }
    ],
}
_META = {
    "user": {"id": "30d6", "username": "curator.one"},
    "workflow": {"id": "sdxl-default"},
    "seed_drawn": False,
    "timings_ms": {
        "wipe": 0.38,
        "ready": 7.13,
        "staging": 0.03,
        "models": 116.36,
        "execution": 4270.83,
        "delivery": 42.65,
        "total": 4439.15,
    },
}
_NO_SUCH_INPUT = "a KSampler has no such input"
_PROBLEM = f"{_NO_SUCH_INPUT}; did you mean 'inputs.scheduler'?"
_ERROR = {
    "reason_code": "VALIDATION_ERROR",
    "reason": f"invalid workflow parameters: workflowParameters[20] (KSampler): {_PROBLEM}",
    "error_type": "InvalidRequest",
    "node_errors": {
        "6": {
            "errors": [
                {
                    "message": _NO_SUCH_INPUT,
                    "path": "workflowParameters[20]",
                    "input": "inputs.schedulr",
                    "near": ["inputs.scheduler"],
                }
            ],
            "class_type": "KSampler",
        }
    },
    "problems": [{"path": "workflowParameters[20]", "problem": _PROBLEM}],
}
_ABOUT = {"job_id": _JOB_ID, "client_id": "settee-agent"}

STATUS: dict[str, Any] = {
    **_ABOUT,
    "state": "RUNNING",
    "timestamp": "2026-05-04T03:02:53.623Z",
    "heartbeat_seq": 16,
    "prompt_id": _PROMPT_ID,
    "progress": _PROGRESS,
    "activity_snapshot": {"running": 1, "pending": 0, "timestamp": "2026-05-04T03:02:53.622Z"},
}
COMPLETION: dict[str, Any] = {
    **_ABOUT,
    "state": "SUCCESS",
    "timestamp": "2026-05-04T03:02:55.907Z",
    "artifacts": [_ARTIFACT],
    "params": _PARAMS,
    "meta": _META,
    "prompt_id": _PROMPT_ID,
    "timing": {
        "started_at": "2026-05-04T03:02:51.130Z",
        "finished_at": "2026-05-04T03:02:55.907Z",
        "duration_ms": 4777,
    },
}
FAILURE: dict[str, Any] = {
    **_ABOUT,
    "state": "FAILED",
    "timestamp": "2026-05-04T03:02:51.156Z",
    **_ERROR,
    "timing": {
        "started_at": "2026-05-04T03:02:51.130Z",
        "finished_at": "2026-05-04T03:02:51.156Z",
        "duration_ms": 26,
    },
    "prompt_id": _PROMPT_ID,
}
_JOB = {"jobId": _JOB_ID, "acceptedAt": "2026-05-04T03:02:51.130Z", "promptId": _PROMPT_ID}
RUNNING: dict[str, Any] = {**_JOB, "state": "RUNNING", "progress": _PROGRESS}
SUCCEEDED: dict[str, Any] = {
    **_JOB,
    "state": "SUCCESS",
    "finishedAt": "2026-05-04T03:02:55.907Z",
    "result": {"artifacts": [_ARTIFACT], "params": _PARAMS, "meta": _META, "warnings": []},
}
FAILED: dict[str, Any] = {**_JOB, "state": "FAILED", "finishedAt": "2026-05-04T03:02:51.156Z", "error": _ERROR}
#: Of GET /jobs/{id}.
JOBS = (RUNNING, SUCCEEDED, FAILED)
CANCEL: dict[str, Any] = {"token": "3f0c7a52b1d94e86"}
EVENT = """id: 1777863771203
event: state
data: {"jobId": "c7c4b87a-6c9e-4a53-9301-7a1d5f6d32b2", "state": "QUEUED", "acceptedAt": "2026-05-04T03:02:51.130Z"}

"""

__all__ = ["CANCEL", "COMPLETION", "EVENT", "FAILED", "FAILURE", "JOBS", "RUNNING", "STATUS", "SUCCEEDED"]
