"""Studies of a reproduction: opened, run once, and read back; artefacts and metrics call it."""
