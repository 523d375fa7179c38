"""The smart client: send any workflow to a RunPod endpoint, a local worker or a bare ComfyUI.

    from settee.client import Endpoint

    result = Endpoint("http://127.0.0.1:8000").run("workflow.json", images=["photo.png"], prompt="a fox in the snow")
    result.save("out")

The command line is :mod:`settee.client.cli` (``settee-client``, ``client.py``).
"""
