"""Parts of a decoder layer other than its experts: norms, attention, positions, feed-forward."""
