"""``python -m settee.embedded``: start the embedded ComfyUI."""

import sys

from settee.embedded.cli import main

if __name__ == "__main__":
    sys.exit(main())
