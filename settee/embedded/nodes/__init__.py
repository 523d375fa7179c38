"""The node classes of the embedded server by name: ComfyUI's model-free ones, and settee's own."""

from __future__ import annotations

from settee.embedded.nodes import blending, images, loading, masks, media, own, saving, values
from settee.embedded.nodes.base import Node

NODES: dict[str, type[Node]] = {
    node_class.spec.name: node_class
    for module in (images, blending, masks, loading, saving, values, own, media)
    for node_class in module.NODES
}
