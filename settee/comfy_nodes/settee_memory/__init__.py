"""A ComfyUI custom node without nodes: ComfyUI sees a container's memory limit; all of it is in prestartup_script.py.

That runs before ComfyUI asks for the first time, when it reckons how much memory it may pin.
"""

from __future__ import annotations

#: ComfyUI wants to see this in every custom node.
NODE_CLASS_MAPPINGS: dict[str, type] = {}
