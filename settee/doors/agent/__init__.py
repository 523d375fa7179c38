"""The GPU agent: the engine as an HTTP service beside one ComfyUI."""
