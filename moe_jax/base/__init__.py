"""What every other package rests on: trees, files, checks, text, processes, sharding."""
