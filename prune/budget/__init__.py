"""How many experts each layer keeps."""
