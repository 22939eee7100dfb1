"""Where it runs: the Ray session, the machine's resources, storage."""
