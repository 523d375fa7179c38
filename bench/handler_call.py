"""`python -m bench.handler_call SMALL LARGE`: two jobs (inputs as JSON) through rp_handler.handler, in this process.

Prints as JSON by how many bytes the second one grew it (``growth``), and the size of its picture (``size``). Nothing of
the SDK's loop is in it. Linux only (/proc).
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from rp_handler import handler
from tests.support.memory import reset_peak, resident


async def picture(job_input: Any) -> dict[str, Any]:
    answer = await handler({"id": "bench", "input": job_input})
    if "error" in answer:
        sys.exit(str(answer)[:1000])
    image: dict[str, Any] = answer["images"][0]
    return image


async def main() -> None:
    small, large = (json.loads(text) for text in sys.argv[1:])
    await picture(small)
    before = reset_peak()
    image = await picture(large)
    print(json.dumps({"growth": resident("VmHWM") - before, "size": image["size"]}))


if __name__ == "__main__":
    asyncio.run(main())
