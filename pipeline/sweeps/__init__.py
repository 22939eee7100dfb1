"""Many trials: which, in which order, until when."""
