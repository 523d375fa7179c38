"""The node classes of the embedded server by name: ComfyUI's model-free ones, stand-ins for those with
models, settee's own, and some that do what popular packs do."""

from __future__ import annotations

from settee.embedded.nodes import (
    audio_video,
    blending,
    latents,
    loading,
    models,
    own,
    packs,
    pictures,
    saving,
    values,
)
from settee.embedded.nodes.base import Node

NODES: dict[str, type[Node]] = {
    node_class.spec.name: node_class
    for module in (pictures, blending, loading, saving, values, models, latents, own, audio_video, packs)
    for node_class in module.NODES
}
