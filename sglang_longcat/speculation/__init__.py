"""Everything that a drafted token meets outside the model and the N-gram cache."""
