"""Where jobs can be sent, and what they answer."""
