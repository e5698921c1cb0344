"""What trained the checkpoints that ship with the package."""
