"""What this library takes, in rounds with what people would use instead: `python -m benchmarks`."""
