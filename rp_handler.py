"""The RunPod worker: `python rp_handler.py`, or `handler` for a worker of your own.

    python rp_handler.py                                      under RunPod
    python rp_handler.py --rp_serve_api --rp_api_port 8000    the SDK's local API: POST /runsync, /run, /status/ID
    python rp_handler.py --test_input '{"input": {…}}'        one job, then the end
    python rp_handler.py --demo                               the local API with an embedded ComfyUI: no GPU needed

Everything is in settee/doors/runpod; this file is what RunPod's templates and tools look for.
"""

from settee.doors.runpod.worker import handler, main

__all__ = ["handler", "main"]

if __name__ == "__main__":
    main()
