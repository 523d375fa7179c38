"""Jobs on a real ComfyUI at COMFY_URL that shares its folders (COMFY_INPUT_DIR, …): every file is accounted for.

It needs tests/support/comfy_pack and settee/comfy_nodes/settee_patches in its custom_nodes, the checkpoint that
``python -m tests.support.tiny_checkpoint MODELS_DIR`` makes, and its output folder as the first of its `datasets`
(extra_model_paths.yaml), as the worker's own ComfyUI has it.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from settee.base.job import Output
from tests.support.real_inputs import OTHERS, Case
from tests.support.real_jobs import BY_CLASS, PAID
from tests.support.rig import EXTERNAL, Rig, b64, files_below

pytestmark = pytest.mark.skipif(not EXTERNAL, reason="needs a real ComfyUI at COMFY_URL")

#: Larger ones come by the volume: models.
MAX_RESULT_BYTES = 20_000_000


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    # A network volume is mounted somewhere, which the temporary folder need not be.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as volume:
        options = {"allow_debug": True, "result_volume_dir": Path(volume) / "results", "job_timeout_s": 120}
        with Rig(tmp_path_factory.mktemp("real"), **options, comfy_unresponsive_s=60) as rig:
            yield rig


def _kind(output: Output) -> str:
    return "text" if output.filename.startswith("node_") else Path(output.filename).suffix


def _digests(outputs: tuple[Output, ...]) -> collections.Counter[str]:
    found: collections.Counter[str] = collections.Counter()
    for output in outputs:
        if output.type == "path":
            assert output.url is not None
            content = Path(output.url).read_bytes()
        else:
            assert output.data is not None
            content = output.data.encode() if output.type == "text" else base64.b64decode(output.data)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (output.size, output.sha256)
        if not (output.type == "text" and output.filename.startswith("node_")) and "websocket" not in output.filename:
            found[output.sha256] += 1
    return found


@pytest.mark.parametrize("name", [*BY_CLASS, *OTHERS])
def test_a_job_brings_back_all_that_it_made(real: Rig, name: str) -> None:
    case: Case = {**BY_CLASS, **OTHERS}[name]
    known = requests.get(f"{real.url}/object_info", timeout=30).json()
    missing = {node["class_type"] for node in case.graph.values()} - set(known)
    if missing or (case.is_new and "SaveText" not in known):
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(missing)) or 'such inputs yet'}")
    files = {each: b64(content()) for each, content in case.files.items()}
    result = real.run(case.graph, files=files, debug=True, max_result_bytes=MAX_RESULT_BYTES)
    made: dict[str, list[str]] = {}
    for output in result.outputs:
        made.setdefault(output.node_id, []).append(_kind(output))
    assert {node_id: sorted(kinds) for node_id, kinds in made.items()} == case.made, result.warnings
    assert any("nothing but previews" in warning for warning in result.warnings) is case.are_previews
    # Debug leaves the files until the next job: whatever is there was returned.
    _, output_dir, temp_dir = real.folders
    left = [path for path in files_below(temp_dir if case.are_previews else output_dir) if path.is_file()]
    assert collections.Counter(hashlib.sha256(path.read_bytes()).hexdigest() for path in left) == _digests(
        result.outputs
    )


def test_every_output_class_of_comfyuis_own_has_a_job(real: Rig) -> None:
    known = requests.get(f"{real.url}/object_info", timeout=30).json()
    ours = ("nodes", "comfy_extras.", "comfy_api_nodes.", "custom_nodes.websocket_image_save")
    outputs = {name for name, info in known.items() if info["output_node"] and info["python_module"].startswith(ours)}
    assert "ImageCompositor" not in outputs or outputs == {*BY_CLASS, *PAID}
