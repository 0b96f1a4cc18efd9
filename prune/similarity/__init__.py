"""Which experts or hidden units resemble each other."""
