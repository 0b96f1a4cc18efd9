"""Plans carried out on parameter trees of other libraries."""
