"""Evaluations, one file per kind; each returns the `Scores` of single examples."""
