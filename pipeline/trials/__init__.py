"""One training of one target, wherever it runs."""
