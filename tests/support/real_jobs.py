"""Jobs for a real ComfyUI, one for every output node class that needs no payment, and what each must bring back.
docs/api.md has the table that :func:`table` makes of them.

``python -m tests.support.real_jobs`` prints that table.
"""

from __future__ import annotations

from typing import Any

from tests.support.real_inputs import IMAGE, LATENT, MODEL, SOUND, TEXT, VIDEO, Case, Inputs, glb, graph, obj

#: Output nodes of 0.33.0 that ask a paid service.
PAID = (
    *("Tencent" + name for name in ("TextToModelNode", "ImageToModelNode")),
    *(f"Meshy{name}ModelNode" for name in ("TextTo", "ImageTo", "MultiImageTo", "Rig", "Animate")),
    *("MeshyRefineNode", "MeshyTextureNode"),
    *(f"Tripo{name}ToModelNode" for name in ("Text", "Image", "Multiview")),
    *(f"Tripo{name}Node" for name in ("Texture", "Refine", "Rig", "Retarget", "Conversion")),
)

MASK = ("SolidMask", {"value": 1.0, "width": 16, "height": 16})
MESH = ("Load3DAdvanced", {"model_file": "3d/a.glb", "viewport_state": {}, "width": 64, "height": 64})
PLY = ("MakePLY", {})
ONE = ("EmptyImage", {**IMAGE[1], "batch_size": 1})
VIEW = {"viewport_state": {}, "width": 64, "height": 64}
TRAINED = (
    "TrainLoraNode",
    {
        "model": "@m",
        "latents": "@a",
        "positive": "@t",
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "steps": 1,
        "learning_rate": 0.0005,
        "rank": 1,
        "optimizer": "SGD",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": False,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    },
)


def saver(class_type: str, made: str, source: tuple[str, Inputs] = IMAGE, /, **inputs: Any) -> Case:
    """A source "a" into the class at "z"; ``made``: suffixes with spaces between."""
    return Case(graph(a=source, z=(class_type, inputs)), {"z": made.split()})


def of_images(class_type: str, made: str, **inputs: Any) -> Case:
    return saver(class_type, made, images="@a", filename_prefix="sub/x", **inputs)


def of_model(class_type: str, made: str, **inputs: Any) -> Case:
    return Case(graph(m=MODEL, z=(class_type, {"filename_prefix": "checkpoints/x", **inputs})), {"z": [made]})


def of_mesh(class_type: str, name: str, made: str, is_preview: bool = False, **inputs: Any) -> Case:
    source = (MESH[0], {**MESH[1], "model_file": f"3d/{name}"})
    files = {f"3d/{name}": obj if name.endswith("obj") else glb}
    return Case(graph(a=source, z=(class_type, inputs)), {"z": [made]}, files, is_preview, is_new=True)


def previews(case: Case) -> Case:
    return Case(case.graph, case.made, case.files, are_previews=True, is_new=case.is_new)


def new(case: Case) -> Case:
    return Case(case.graph, case.made, case.files, case.are_previews, is_new=True)


#: One job for each output node class that comes with ComfyUI 0.33.0.
BY_CLASS: dict[str, Case] = {
    "SaveImage": of_images("SaveImage", ".png .png"),
    "PreviewImage": previews(saver("PreviewImage", ".png .png", images="@a")),
    "SaveLatent": saver("SaveLatent", ".latent", LATENT, samples="@a", filename_prefix="latents/x"),
    "MaskPreview": previews(saver("MaskPreview", ".png", MASK, mask="@a")),
    "CheckpointSave": of_model("CheckpointSave", ".safetensors", model="@m", clip="@m.1", vae="@m.2"),
    "CLIPSave": of_model("CLIPSave", ".safetensors", clip="@m.1"),
    "VAESave": of_model("VAESave", ".safetensors", vae="@m.2"),
    "ModelSave": of_model("ModelSave", ".safetensors", model="@m"),
    "SaveAnimatedWEBP": of_images("SaveAnimatedWEBP", ".webp", fps=6.0, lossless=True, quality=80, method="default"),
    "SaveAnimatedPNG": of_images("SaveAnimatedPNG", ".png", fps=6.0, compress_level=4),
    "SaveImageAdvanced": new(
        of_images(
            "SaveImageAdvanced",
            ".png .png",
            **{"format": "png", "format.bit_depth": "16-bit", "format.input_color_space": "sRGB"},
        )
    ),
    "SaveSVGNode": Case(
        graph(a=("MakeSVG", {}), z=("SaveSVGNode", {"svg": "@a", "filename_prefix": "svg/x"})),
        {"z": [".svg", ".svg"]},
        is_new=True,
    ),
    "ImageOnlyCheckpointSave": Case(
        graph(
            m=MODEL,
            a=("TinyClipVision", {}),
            z=(
                "ImageOnlyCheckpointSave",
                {"model": "@m", "clip_vision": "@a", "vae": "@m.2", "filename_prefix": "checkpoints/x"},
            ),
        ),
        {"z": [".safetensors"]},
    ),
    "CreateBoundingBoxes": Case(
        graph(
            a=("CreateBoundingBoxes", {"width": 64, "height": 64, "editor_state": {"__value__": []}}),
            z=("SaveImage", {"images": "@a", "filename_prefix": "x"}),
        ),
        {"z": [".png"]},
        is_new=True,
    ),
    "SaveLoRA": Case(
        graph(m=MODEL, t=TEXT, a=LATENT, b=TRAINED, z=("SaveLoRA", {"lora": "@b.0", "prefix": "loras/x", "steps": 1})),
        {"z": [".safetensors"]},
        is_new=True,
    ),
    "LossGraphNode": new(previews(saver("LossGraphNode", ".png", ("MakeLoss", {}), loss="@a", filename_prefix="x"))),
    "SaveImageDataSetToFolder": new(
        saver(
            "SaveImageDataSetToFolder",
            ".png",
            ONE,
            images="@a",
            folder_name="set",
            filename_prefix="x",
            mode="overwrite",
        )
    ),
    "SaveImageTextDataSetToFolder": new(
        saver(
            "SaveImageTextDataSetToFolder",
            ".png .txt",
            ONE,
            images="@a",
            folder_name="set",
            filename_prefix="x",
            mode="overwrite",
            texts="a caption",
        )
    ),
    "SaveTrainingDataset": Case(
        graph(
            m=MODEL,
            t=TEXT,
            a=LATENT,
            z=("SaveTrainingDataset", {"latents": "@a", "conditioning": "@t", "folder_name": "x", "shard_size": 10}),
        ),
        {"z": [".json", ".pkl"]},
        is_new=True,
    ),
    "SaveAudio": saver("SaveAudio", ".flac", SOUND, audio="@a", filename_prefix="audio/x"),
    "SaveAudioMP3": saver("SaveAudioMP3", ".mp3", SOUND, audio="@a", filename_prefix="audio/x", quality="128k"),
    "SaveAudioOpus": saver("SaveAudioOpus", ".opus", SOUND, audio="@a", filename_prefix="audio/x", quality="96k"),
    "SaveAudioAdvanced": new(
        saver("SaveAudioAdvanced", ".flac", SOUND, audio="@a", filename_prefix="audio/x", format="flac")
    ),
    "PreviewAudio": previews(saver("PreviewAudio", ".flac", SOUND, audio="@a")),
    "LoraSave": Case(
        graph(
            m=MODEL,
            a=("ModelMergeSubtract", {"model1": "@m", "model2": "@m", "multiplier": 1.0}),
            z=(
                "LoraSave",
                {
                    "filename_prefix": "loras/x",
                    "rank": 1,
                    "lora_type": "full_diff",
                    "bias_diff": True,
                    "model_diff": "@a",
                },
            ),
        ),
        {"z": [".safetensors"]},
    ),
    "Preview3D": of_mesh("Preview3D", "a.glb", ".glb", model_file="@a"),
    "Preview3DAdvanced": of_mesh("Preview3DAdvanced", "a.glb", ".glb", True, model_3d="@a", **VIEW),
    "PreviewGaussianSplat": new(previews(saver("PreviewGaussianSplat", ".ply", PLY, model_3d="@a", **VIEW))),
    "PreviewPointCloud": new(previews(saver("PreviewPointCloud", ".ply", PLY, model_3d="@a", **VIEW))),
    "SaveWEBM": of_images("SaveWEBM", ".webm", codec="vp9", fps=8.0, crf=32.0),
    "SaveVideo": Case(
        graph(
            a=IMAGE, b=VIDEO, z=("SaveVideo", {"video": "@b", "filename_prefix": "x", "format": "mp4", "codec": "auto"})
        ),
        {"z": [".mp4"]},
    ),
    "PreviewAny": saver("PreviewAny", "text", ("PrimitiveInt", {"value": 42}), source="@a"),
    "ImageCompare": previews(
        new(saver("ImageCompare", ".png .png .png .png", image_a="@a", image_b="@a", compare_view={"__value__": []}))
    ),
    "ImageCompositor": Case(
        graph(a=IMAGE, b=("AddLayer", {"image": "@a"}), z=("ImageCompositor", {"layers": "@b", "compositor": {}})),
        {"z": [".png"] * 3},
        are_previews=True,
        is_new=True,
    ),
    "SAM3_TrackPreview": Case(
        graph(a=("MakeTrackData", {}), z=("SAM3_TrackPreview", {"track_data": "@a", "opacity": 0.5, "fps": 8.0})),
        {"z": [".mp4"]},
        are_previews=True,
        is_new=True,
    ),
    "SaveGLB": of_mesh("SaveGLB", "a.glb", ".glb", mesh="@a", filename_prefix="mesh/x"),
    "Save3DAdvanced": of_mesh("Save3DAdvanced", "a.obj", ".obj", model_3d="@a", filename_prefix="3d/x", **VIEW),
    "SaveGaussianSplat": new(saver("SaveGaussianSplat", ".ply", PLY, model_3d="@a", filename_prefix="3d/x", **VIEW)),
    "SavePointCloud": new(saver("SavePointCloud", ".ply", PLY, model_3d="@a", filename_prefix="3d/x", **VIEW)),
    "SaveText": new(
        saver(
            "SaveText", ".md text", ("PrimitiveString", {"value": "# a"}), text="@a", filename_prefix="x", format="md"
        )
    ),
    "SaveImageWebsocket": saver("SaveImageWebsocket", ".png .png", images="@a"),
}


def table() -> str:
    """The table in docs/api.md."""
    lines = ["| class | what comes back |", "|---|---|"]
    for name, case in BY_CLASS.items():
        suffixes = dict.fromkeys(suffix for made in case.made.values() for suffix in made)
        what = ", ".join("a text" if suffix == "text" else f"`{suffix}`" for suffix in suffixes)
        lines.append(f"| {name} | {what}{' (preview)' if case.are_previews else ''} |")
    lines.append(f"| {', '.join(PAID)} | not run: they ask a paid service, and save files as SaveGLB does |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
