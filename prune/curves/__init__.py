"""Quality by how much is removed, and how far removal is safe."""
