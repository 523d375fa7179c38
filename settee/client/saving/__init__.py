"""A job's outputs, saved into a folder under names of our own choosing.

save ──┬─▶ names    from the server's hint, or the media type
       ├─▶ part     the bytes on their way: counted, hashed, checked
       ├─▶ fetch    from S3 or a ComfyUI: resumed, retried
       └─▶ placing  the free name, taken at once, and the JSON beside it
"""

from settee.client.saving.names import plain_name
from settee.client.saving.part import Damaged
from settee.client.saving.save import Saved, make_folder, save

__all__ = ["Damaged", "Saved", "make_folder", "plain_name", "save"]
