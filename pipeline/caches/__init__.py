"""What sources say of the pool, made once and kept."""
