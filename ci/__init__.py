"""What CI runs, and longer runs of the same gates. ci/README.md has the commands."""
