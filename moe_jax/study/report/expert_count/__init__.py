"""The report of an expert-count study, from its records."""
