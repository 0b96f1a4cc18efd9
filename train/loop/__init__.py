"""The training loop: state, step, data feed, checkpoints."""
