"""ComfyUI seen from outside: its HTTP API, its event socket, its process, and the truth about a prompt."""
