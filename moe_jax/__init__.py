"""Sparse mixture-of-experts language models: load, observe, score, and (with `prune`) shrink."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
