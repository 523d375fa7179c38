"""Workflows small enough to read, one for each shape in which prompts come, with the places that they belong to.

Classes and inputs of ComfyUI's own are named as in its /object_info.
"""

from __future__ import annotations

from tests.unit.client.prompt_shapes.building import Shape
from tests.unit.client.prompt_shapes.custom import CUSTOM, SERVICES
from tests.unit.client.prompt_shapes.models import MODELS
from tests.unit.client.prompt_shapes.stock import CONDITIONING, SD15
from tests.unit.client.prompt_shapes.texts import TEXTS

SHAPES: dict[str, Shape] = {**SD15, **CONDITIONING, **MODELS, **TEXTS, **CUSTOM, **SERVICES}
