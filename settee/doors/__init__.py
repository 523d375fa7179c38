"""The ways in: each module turns one host's protocol into an engine's Job and its Result back into that protocol."""
