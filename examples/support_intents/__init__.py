"""Five banks learn to route requests."""
