"""Folders of Hugging Face transformers: read tensor by tensor, written whole or not at all."""
