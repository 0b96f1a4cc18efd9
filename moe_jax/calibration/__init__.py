"""Routing statistics: one pass over text, additive sums, and files of them."""
