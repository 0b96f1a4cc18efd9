"""Evaluate the chosen experts of every token, on one device or over a mesh."""
