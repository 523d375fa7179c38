"""Knowledge of ComfyUI as pure functions, shared by worker and client."""
