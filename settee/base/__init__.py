"""The mechanisms that every part needs. This package knows neither ComfyUI nor HTTP, and imports nothing of settee."""
