"""A workflow as ComfyUI's editor saves it → API format, exactly as the editor exports it, or a refusal.

    workflow = converted(editor, object_info)

Whatever could make the graph differ is a UsageError that names the node; nothing is guessed. The rules were found by
asking the real editor: comfyui-frontend-package 1.27.10, whose export is the reference, and later ones up to 1.58.1.
Where these disagree about a file, it is refused (tests/data/editor-pairs/README.md).
"""

from settee.client.convert.exporting import converted
from settee.client.convert.graph import is_editor_format

__all__ = ["converted", "is_editor_format"]
