"""Products of matrices: dense, and grouped by expert with one backend per kind of machine."""
