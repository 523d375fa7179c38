"""ComfyUI's memory and caches dropped, for certain, before the next prompt.

POST /free only sets flags. The thread that runs prompts looks at them after a prompt, or when it is woken with nothing
to run: a prompt that arrives before it has woken runs first, on the old cache. So a prompt of no consequence goes
ahead; whichever way that race ends, the flags are dealt with before the one after it.
"""

from __future__ import annotations

import uuid

from settee.comfy.client import Client

#: Two of ComfyUI's core nodes. What it leaves in the temp folder is wiped with the job's own.
_NOTHING = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def free(client: Client, *, timeout_s: float) -> str:
    """Unload models and drop the execution cache before any prompt that is submitted after this.

    Returns the id of the prompt that goes ahead, for history to forget. Raises ComfyError.
    """
    client.free()
    prompt_id = str(uuid.uuid4())
    client.submit(_NOTHING, prompt_id=prompt_id, client_id=prompt_id, extra_data={}, timeout_s=timeout_s)
    return prompt_id
