"""The model manager: `python utils.py` places every model of MODELS and MODELS_FILE; `--help` tells the rest.

Everything is in settee/models; this file is what the image's build and its operators run.
"""

import sys

from settee.models.command_line import main

if __name__ == "__main__":
    sys.exit(main())
