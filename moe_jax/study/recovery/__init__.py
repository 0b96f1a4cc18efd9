"""Recovery studies: the share of the lost quality that each training recipe wins back."""
