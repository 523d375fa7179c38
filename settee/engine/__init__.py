"""One job at a time, from its request to its result."""
