"""Kinds follow the suffix, whatever key ComfyUI reported a file under."""

from __future__ import annotations

import pytest

from settee.base.job import Kind
from settee.comfyui.media import kind_of


@pytest.mark.parametrize(
    ("filename", "kind", "media_type"),
    [
        ("ComfyUI_00001_.png", Kind.IMAGE, "image/png"),
        ("a.JPG", Kind.IMAGE, "image/jpeg"),
        ("moving.webp", Kind.IMAGE, "image/webp"),
        ("moving.gif", Kind.IMAGE, "image/gif"),
        ("a.apng", Kind.IMAGE, "image/apng"),
        ("depth.exr", Kind.IMAGE, "image/x-exr"),
        ("film.mp4", Kind.VIDEO, "video/mp4"),
        ("film.webm", Kind.VIDEO, "video/webm"),
        ("song.flac", Kind.AUDIO, "audio/flac"),
        ("song.opus", Kind.AUDIO, "audio/ogg"),
        ("mesh.glb", Kind.MODEL_3D, "model/gltf-binary"),
        ("cloud.ply", Kind.MODEL_3D, "model/ply"),
        ("notes.txt", Kind.TEXT, "text/plain; charset=utf-8"),
        ("table.csv", Kind.FILE, "text/csv; charset=utf-8"),
        ("x.latent", Kind.FILE, "application/octet-stream"),
        ("model.safetensors", Kind.FILE, "application/octet-stream"),
        ("no suffix", Kind.FILE, "application/octet-stream"),
        (".png", Kind.FILE, "application/octet-stream"),
        ("", Kind.FILE, "application/octet-stream"),
        ("archive.png.zip", Kind.FILE, "application/zip"),
    ],
)
def test_kind_and_media_type(filename: str, kind: Kind, media_type: str) -> None:
    assert kind_of(filename) == (kind, media_type)
