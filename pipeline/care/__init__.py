"""What lies on a storage: listed, verified, cleared away."""
