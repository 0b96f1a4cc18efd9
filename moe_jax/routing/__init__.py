"""Which experts a token uses: router designs, gates, losses, skipping."""
