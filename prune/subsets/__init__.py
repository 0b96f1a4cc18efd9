"""Errors of subsets of experts, and searches over them."""
