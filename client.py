"""Send a workflow to a settee worker: `python client.py workflows/invert.json --img photo.png`."""

from settee.client.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
