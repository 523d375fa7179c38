"""What is known of ComfyUI: pure functions, shared by worker and client."""
