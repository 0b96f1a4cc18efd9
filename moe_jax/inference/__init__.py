"""Scoring, continuations and generation."""
