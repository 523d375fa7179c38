"""The node classes of the embedded server by name: ComfyUI's model-free ones, stand-ins for those with models, and
settee's own."""

from __future__ import annotations

from settee.embedded.nodes import image_files, models, own, pictures, sampling, values
from settee.embedded.nodes.node import NODES

__all__ = ["NODES", "image_files", "models", "own", "pictures", "sampling", "values"]
