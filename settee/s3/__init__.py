"""The only place that talks S3: for the worker's deliveries, models and inputs, the agent, and the client's uploads."""
