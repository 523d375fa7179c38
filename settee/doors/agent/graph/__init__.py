"""From a template and a dispatch to the job's graph. Pure."""
