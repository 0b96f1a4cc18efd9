"""Text: pinned sources, a corpus split once, tokens, packed rows, batches and tasks."""
