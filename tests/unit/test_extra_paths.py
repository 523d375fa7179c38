"""The file that shows ComfyUI further folders, and what the embedded server makes of it."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

from settee.backends.comfy.launch import NODES, ExtraPaths, content
from settee.base.errors import ConfigError, ExecutionFailed
from settee.base.settings import Settings, load
from settee.comfy_nodes import settee_patches
from settee.comfyui.history import failure_of
from settee.comfyui.isolation import SALT_INPUT, salted
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.embedded.server_options import options_from
from settee.staging.workspace import Folders


def settings(tmp_path: Path, **more: Any) -> Settings:
    return load(**{"comfy_dir": tmp_path / "comfy", "models_extra_dirs": (), **more})


def shown(tmp_path: Path, **more: Any) -> dict[str, dict[str, str | bool]]:
    return content(settings(tmp_path, **more), folders(tmp_path))


def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "input", tmp_path / "output", tmp_path / "temp")


def test_without_models_elsewhere_only_the_node_is_shown(tmp_path: Path) -> None:
    data_sets = {"datasets": str(tmp_path / "output"), "is_default": True}
    assert shown(tmp_path) == {"settee_nodes": {"custom_nodes": str(NODES)}, "settee_datasets": data_sets}
    same = shown(tmp_path, models_dir=tmp_path / "comfy" / "." / "models")
    assert "settee_models" not in same, "ComfyUI knows its own models folder"


def test_the_folder_of_nodes_holds_nothing_but_nodes() -> None:
    """ComfyUI imports every folder and every .py in it."""
    inside = {path.name for path in NODES.iterdir() if path.name != "__pycache__"}
    assert inside == {"settee_patches"}


def test_models_dir_goes_first_and_extra_folders_that_are_there_last(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    extra = (str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "not mounted"))
    found = shown(tmp_path, models_dir=tmp_path / "mine", models_extra_dirs=extra)
    assert list(found) == ["settee_nodes", "settee_models", "settee_extra_1", "settee_extra_2", "settee_datasets"]
    assert found["settee_models"]["is_default"] is True
    assert found["settee_models"]["vae"] == str(tmp_path / "mine" / "vae")
    assert "is_default" not in found["settee_extra_1"]
    assert found["settee_extra_2"]["text_encoders"] == f"{tmp_path}/b/text_encoders\n{tmp_path}/b/clip"
    assert found["settee_extra_2"]["diffusion_models"] == f"{tmp_path}/b/unet\n{tmp_path}/b/diffusion_models"


def test_folders_of_custom_nodes_are_shown_and_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    found = shown(tmp_path, custom_nodes_dirs=f"{tmp_path}/volume, {tmp_path}/./volume")
    assert found["settee_custom_nodes_1"] == {"custom_nodes": f"{tmp_path}/volume"}
    assert found["settee_custom_nodes_2"] == found["settee_custom_nodes_1"]
    with pytest.raises(ConfigError, match=r"CUSTOM_NODES_DIRS names '.*gone'.*is its volume attached"):
        shown(tmp_path, custom_nodes_dirs=f"{tmp_path}/gone")


def test_kinds_of_custom_nodes_are_shown_and_code_never_is(tmp_path: Path) -> None:
    """A volume's models/custom_nodes would be run; its hidden folders are somebody's records."""
    for name in ("ipadapter", "custom_nodes", ".settee", "base_path", "is_default", "clip", "vae"):
        (tmp_path / "volume" / name).mkdir(parents=True)
    (tmp_path / "volume" / "notes.txt").write_text("x")
    volume = shown(tmp_path, models_extra_dirs=(str(tmp_path / "volume"),))["settee_extra_1"]
    assert volume["ipadapter"] == str(tmp_path / "volume" / "ipadapter")
    assert not {"custom_nodes", ".settee", "base_path", "is_default", "clip", "notes.txt"} & volume.keys()


def test_the_file_is_yaml_for_its_owner_alone_and_goes_at_the_end(tmp_path: Path) -> None:
    (tmp_path / 'vol "ü: #').mkdir()
    paths = ExtraPaths(settings(tmp_path, models_extra_dirs=(str(tmp_path / 'vol "ü: #'),)), folders(tmp_path))
    assert paths.arguments() == []
    paths.write()
    option, name, *nodes = paths.arguments()
    assert option == "--extra-model-paths-config"
    assert nodes[0] == "--whitelist-custom-nodes"
    assert nodes[1:] == ["settee_patches"]
    assert Path(name).stat().st_mode & 0o777 == 0o600
    text = Path(name).read_text()
    assert yaml.safe_load(text) == json.loads(text)
    assert yaml.safe_load(text)["settee_extra_1"]["vae"] == str(tmp_path / 'vol "ü: #' / "vae")
    paths.write()
    assert paths.arguments() == [option, name, *nodes], "one file for all restarts"
    paths.remove()
    assert not Path(name).exists()
    assert paths.arguments() == []


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(str(folder).encode())


def test_the_embedded_server_looks_there_in_that_order(tmp_path: Path) -> None:
    put(tmp_path / "comfy/models", "checkpoints/own.safetensors", "checkpoints/both.safetensors")
    put(tmp_path / "first", "checkpoints/both.safetensors", "clip/enc.safetensors")
    put(tmp_path / "last", "checkpoints/sub/far.safetensors", "checkpoints/own.safetensors", "checkpoints/readme.txt")
    paths = ExtraPaths(
        settings(tmp_path, models_dir=tmp_path / "first", models_extra_dirs=(str(tmp_path / "last"), "/nowhere")),
        folders(tmp_path),
    )
    paths.write()
    try:
        found = options_from(["--base-directory", str(tmp_path / "comfy"), *paths.arguments()]).folders
    finally:
        paths.remove()
    assert found.model_files("checkpoints") == ["both.safetensors", "own.safetensors", "sub/far.safetensors"]
    assert found.model_path("checkpoints", "both.safetensors") == f"{tmp_path}/first/checkpoints/both.safetensors"
    assert found.model_path("checkpoints", "own.safetensors") == f"{tmp_path}/comfy/models/checkpoints/own.safetensors"
    assert found.model_path("checkpoints", "sub/far.safetensors").startswith(f"{tmp_path}/last/")
    assert found.model_files("text_encoders") == ["enc.safetensors"]
    assert found.model_files("custom_nodes") == []


def test_the_embedded_server_reads_a_file_in_comfyuis_own_style(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere", "unets/u.safetensors", "c/a.safetensors")
    (tmp_path / "paths.yaml").write_text(
        "empty:\nother:\n  base_path: elsewhere\n  unet: |\n    unets\n  checkpoints: c/\n  custom_nodes: nodes\n"
    )
    arguments = ["--base-directory", str(tmp_path), "--extra-model-paths-config", str(tmp_path / "paths.yaml")]
    folders = options_from(arguments).folders
    assert folders.model_files("diffusion_models") == ["u.safetensors"]
    assert folders.model_path("checkpoints", "a.safetensors") == f"{tmp_path}/elsewhere/c/a.safetensors"


# --- the node ------------------------------------------------------------------------------------------------

_COMFYUI = """
import asyncio, gc, importlib.util, sys, types
from aiohttp import web
app = web.Application()
at_start = gc.get_freeze_count()
server = types.ModuleType("server")
server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(app=app))
sys.modules["server"] = server
for name in ("one", "two"):
    spec = importlib.util.spec_from_file_location(name, {path!r})
    node = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(node)
assert node.NODE_CLASS_MAPPINGS == {{}}
before = gc.get_freeze_count() - at_start  # Python 3.12 freezes some itself
async def start():
    runner = web.AppRunner(app)
    await runner.setup()
    await runner.cleanup()
hooks = sum(getattr(hook, "__name__", "") == "settee_freeze" for hook in app.on_startup)
asyncio.run(start())
print(before, gc.get_freeze_count() > 10_000, hooks)
"""


def test_the_node_freezes_when_the_server_starts_and_once(tmp_path: Path) -> None:
    path = str(NODES / "settee_patches" / "__init__.py")
    done = subprocess.run(
        [sys.executable, "-c", _COMFYUI.format(path=path)], capture_output=True, text=True, timeout=30, cwd=tmp_path
    )
    assert done.stdout.split() == ["0", "True", "1"], done.stderr


@pytest.mark.parametrize(
    ("module", "problems"),
    [
        (
            "__init__",
            (
                "SystemExit ends the thread of prompts",
                "open-ended inputs see settee_job",
                "the collector's stall stays",
                "models saved to output end their loaders",
            ),
        ),
        ("prestartup_script", ("ComfyUI does not see a container's limit",)),
    ],
)
def test_the_patches_do_no_harm_to_a_comfyui_that_is_built_otherwise(module: str, problems: tuple[str, ...]) -> None:
    path = NODES / "settee_patches" / f"{module}.py"
    done = subprocess.run([sys.executable, "-I", "-S", path], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert [problem for problem in problems if problem not in done.stderr] == []
    assert "Traceback" not in done.stderr


def patched(function: Any, wrap: Any) -> Any:
    """As the image and the supervisor do it: both may have shown the folder to ComfyUI."""
    owner = types.SimpleNamespace(function=function)
    settee_patches.patch(owner, "function", wrap)
    once = owner.function
    settee_patches.patch(owner, "function", wrap)
    assert owner.function is once
    return once


def test_the_salt_is_no_argument_of_a_class_that_takes_any() -> None:
    """As execution.get_input_data of ComfyUI 0.3.64 and 0.33: whatever `optional` claims to contain is passed on."""

    def get_input_data(inputs: dict[str, Any], class_def: Any, unique_id: str, *_: Any) -> Any:
        return {name: [value] for name, value in inputs.items() if name in class_def}, {}, {}

    class AnyKey(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            return True

    assert settee_patches.SALT_INPUT == SALT_INPUT
    wrapped = patched(get_input_data, settee_patches.without_salt)
    node = salted({"class_type": "AnyKey", "inputs": {"image_1": "a"}}, NodeRegistry(), "job")
    assert SALT_INPUT in node
    assert wrapped(node, AnyKey(), "1")[0] == {"image_1": ["a"]}
    assert SALT_INPUT in node, "the prompt, and so its cache key, stays as it is"


class Executor:
    """As PromptExecutor of ComfyUI 0.3.64 and 0.33: an Exception of a node is dealt with, all else goes through."""

    def __init__(self) -> None:
        self.server = types.SimpleNamespace(last_node_id="of an earlier prompt")
        self.history_result: dict[str, Any] = {"outputs": {"9": "of an earlier prompt"}}
        self.resets = 0
        self.reset()

    def reset(self) -> None:
        self.resets += 1
        self.status_messages: list[tuple[str, dict[str, Any]]] = []
        self.success = True

    def add_message(self, event: str, data: dict[str, Any], broadcast: bool) -> None:
        self.status_messages.append((event, data))

    def execute(self, prompt: dict[str, Any], prompt_id: str, extra_data: Any, execute_outputs: Any) -> None:
        for node_id, node in prompt.items():
            self.server.last_node_id = node_id
            if node["class_type"] == "Exits":
                sys.exit("bye")
        self.history_result = {"outputs": {"9": "saved"}}


def test_a_node_that_ends_the_thread_of_prompts_fails_its_prompt_only() -> None:
    execute = patched(Executor.execute, settee_patches.surviving)
    executor = Executor()
    prompt = {"1": {"class_type": "EmptyImage"}, "5": {"class_type": "Exits"}}
    execute(executor, prompt, "id", {}, ["5"])
    status = {"status_str": "success" if executor.success else "error", "messages": [[*executor.status_messages[-1]]]}
    error = failure_of(status, prompt, UNKNOWN, {})
    assert (type(error), str(error)) == (ExecutionFailed, "node 5 (Exits) failed: SystemExit: bye")
    assert executor.history_result["outputs"] == {}
    execute(executor, {"9": {"class_type": "SaveImage"}}, "id", {}, ["9"])
    assert executor.history_result["outputs"] == {"9": "saved"}


@pytest.mark.parametrize("name", ["VALIDATE_INPUTS", "validate_inputs", "IS_CHANGED", "fingerprint_inputs"])
def test_an_exit_in_a_nodes_checks_is_an_error_that_names_the_node(name: str) -> None:
    async def call(prompt_id: str, node_id: str, node: Any, inputs: Any, func: str, **_: Any) -> Any:
        """As execution._async_map_node_over_list of ComfyUI 0.3.64 and 0.33."""
        return [getattr(node, func)(**inputs)]

    node = types.SimpleNamespace(FUNCTION="go", go=sys.exit, fine=lambda: 1, **{name: lambda: sys.exit("bye")})
    wrapped = patched(call, settee_patches.refusing)
    with pytest.raises(RuntimeError, match=f"^node 5, {name}: SystemExit: bye$"):
        asyncio.run(wrapped("id", "5", node, {}, name, v3_data=None))
    assert asyncio.run(wrapped("id", "5", node, {}, "fine")) == [1]
    with pytest.raises(SystemExit):  # `surviving` knows which node runs
        asyncio.run(wrapped("id", "5", node, {}, "go"))


def test_a_thread_that_cannot_be_saved_ends_with_a_line_in_the_log() -> None:
    """threading prints one for every exception but SystemExit, and the supervisor waits for it."""
    execute = settee_patches.surviving(Executor.execute)
    executor = Executor()
    executor.add_message = lambda _: None  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="the thread that runs prompts ends"):
        execute(executor, {"5": {"class_type": "Exits"}}, "id", {}, ["5"])


def test_savers_within_a_node_that_expands_are_salted_and_so_is_the_node_from_then_on() -> None:
    class DynamicPrompt:
        """As ComfyUI's comfy_execution.graph has it."""

        def __init__(self, original_prompt: dict[str, Any]) -> None:
            self.original_prompt = original_prompt
            self.ephemeral: dict[str, tuple[dict[str, Any], str]] = {}

        def add_ephemeral_node(self, node_id: str, node: dict[str, Any], parent_id: str, display_id: str) -> None:
            self.ephemeral[node_id] = (node, parent_id)

        def get_node(self, node_id: str) -> dict[str, Any]:
            return self.ephemeral[node_id][0] if node_id in self.ephemeral else self.original_prompt[node_id]

        def get_parent_node_id(self, node_id: str) -> str | None:
            return self.ephemeral[node_id][1] if node_id in self.ephemeral else None

    settee_patches.salt_expanded(DynamicPrompt, lambda name: name == "Save")
    graph = {"1": {"class_type": "Other", "inputs": {}}, "2": {"class_type": "Loop", "inputs": {"count": 3}}}
    salts = set()
    for turn in range(3):
        prompt = DynamicPrompt(copy.deepcopy(graph))
        assert (SALT_INPUT in prompt.get_node("2")["inputs"]) is (turn > 0)
        prompt.add_ephemeral_node("2.0.0.1", {"class_type": "While", "inputs": {}}, "2", "2")
        assert (SALT_INPUT in prompt.get_node("2.0.0.1")["inputs"]) is (turn > 0)
        prompt.add_ephemeral_node("2.0.0.1.0.0.1", {"class_type": "Save", "inputs": {"a": 1}}, "2.0.0.1", "2")
        prompt.add_ephemeral_node("2.0.0.1.0.0.2", {"class_type": "Other", "inputs": {}}, "2.0.0.1", "2")
        salts.add(prompt.get_node("2.0.0.1.0.0.1")["inputs"][SALT_INPUT])
        assert prompt.get_node("2.0.0.1.0.0.2")["inputs"] == prompt.get_node("1")["inputs"] == {}
    assert len(salts) == 3


def test_a_folder_with_models_may_go_again(tmp_path: Path) -> None:
    """As folder_paths.cached_filename_list_ of ComfyUI 0.3.64 and 0.33: it asks for the time of every folder."""
    cached = settee_patches.forgetting(lambda name: os.path.getmtime(tmp_path / name))
    (tmp_path / "loras").mkdir()
    assert cached("loras") == os.path.getmtime(tmp_path / "loras")
    (tmp_path / "loras").rmdir()
    assert cached("loras") is None
