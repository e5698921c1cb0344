"""Stands in for the `mooncake` package where it is not installed; see `engine`."""
