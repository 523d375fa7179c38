"""The client: sends a workflow with its images to a worker, and saves what comes back."""
