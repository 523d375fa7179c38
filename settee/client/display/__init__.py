"""What a person sees of jobs: the changes before they are sent, and how they stand while they run.

live ──▶ rows ──▶ text      table ──▶ text
"""

from settee.client.display.live import Display
from settee.client.display.table import table

__all__ = ["Display", "table"]
