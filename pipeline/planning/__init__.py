"""What an experiment file says, checked, and what it amounts to."""
