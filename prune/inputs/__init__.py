"""Statistics, the original model and options, checked and read."""
