"""`GET /metrics` for Prometheus. Nothing is imported here: `directory` must come before prometheus_client."""
