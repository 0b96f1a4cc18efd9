"""The decoder: its layers, its parameters, what it costs and who it is."""
