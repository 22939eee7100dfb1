"""What happens in which order: pack, cache, train, sweep, report."""
