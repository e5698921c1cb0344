"""Small random checkpoints and dummy routing, for tests, demos and speed measurements."""
