"""A plan carried out on parameters and on optimizer moments."""
