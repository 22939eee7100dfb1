"""Images of any kind become one packed dataset."""
