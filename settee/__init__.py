"""settee turns any ComfyUI workflow into a job that anyone can submit and trust."""

__version__ = "0.1.0"
