"""What every door that keeps state shares: the store, events, callbacks, the slot, access, metrics, configuration."""
