"""``python -m settee.embedded``: start the embedded ComfyUI."""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
from collections.abc import Sequence

from settee.embedded.server_options import options_from

log = logging.getLogger("settee.embedded")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is killed. As with ComfyUI, SIGTERM ends it at once with exit status -15."""
    logging.basicConfig(level=logging.INFO, format="[%(levelname)s] %(message)s")
    options = options_from(sys.argv[1:] if argv is None else argv)
    from settee.embedded.server import serve  # here, so that a wrong command line is answered at once

    log.info("This is settee's embedded ComfyUI: it runs nodes that need no model, and makes up what models would.")
    try:
        asyncio.run(serve(options))
    except KeyboardInterrupt:
        log.info("\nStopped server")
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        log.error("%s port %d cannot be listened on: choose another --port or --listen", options.listen, options.port)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
