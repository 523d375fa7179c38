"""A small server with ComfyUI's protocol that really runs model-free nodes with Pillow.

It is started by name only (``python -m settee.embedded --port 8188``) for demos, tests and benches; nothing in
production falls back to it. What it answers is held to recordings of ComfyUI 0.33.0 by ``tests/contract``.
"""

COMFYUI_VERSION = "0.33.0"
"""The ComfyUI release whose recorded behaviour this package follows."""
