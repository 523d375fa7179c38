"""The node classes of the embedded server by name: ComfyUI's model-free ones, and stand-ins for those with
models."""

from __future__ import annotations

from settee.embedded.nodes import image_files, models, pictures, sampling, values
from settee.embedded.nodes.node import NODES

__all__ = ["NODES", "image_files", "models", "pictures", "sampling", "values"]
