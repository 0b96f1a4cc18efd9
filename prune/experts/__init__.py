"""Methods that drop or merge whole experts."""
