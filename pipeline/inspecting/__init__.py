"""What lies in a cache, as a picture."""
