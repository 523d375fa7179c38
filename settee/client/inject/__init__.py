"""Finding the places in a workflow that a caller means: prompts, images, seeds and the rest. Pure; nothing is sent."""
