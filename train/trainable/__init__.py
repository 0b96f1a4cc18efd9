"""Which leaves train, whole, in slices or through adapters."""
