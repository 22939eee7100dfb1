"""Measurements of what is claimed, each with both sides in one run."""
