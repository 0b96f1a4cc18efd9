"""Evaluations: one file a kind; each returns `Scores` of the single examples."""
