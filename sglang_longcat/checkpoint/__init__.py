"""Checkpoint files: `layout` (names, shapes), `check` (compare), `tiny` (write a small one)."""
