"""Parts that every door with a state shares: the store, events, callbacks, the slot, access, metrics, configuration."""
