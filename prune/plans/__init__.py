"""The plan: its layers, checks, file, composition and masks."""
