"""The node classes of the embedded server by name: ComfyUI's model-free ones, stand-ins for those with
models, and settee's own."""

from __future__ import annotations

from settee.embedded.nodes import (
    blending,
    images,
    latents,
    loading,
    masks,
    media,
    models,
    own,
    sampling,
    saving,
    text,
    values,
)
from settee.embedded.nodes.base import Node

NODES: dict[str, type[Node]] = {
    node_class.spec.name: node_class
    for module in (images, blending, masks, loading, saving, values, models, text, latents, sampling, own, media)
    for node_class in module.NODES
}
