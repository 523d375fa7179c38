"""The envelope of POST /jobs."""
