"""What every part needs: it knows neither ComfyUI nor HTTP, and imports nothing of settee but itself."""
