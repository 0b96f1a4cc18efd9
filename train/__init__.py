"""Train a sparse mixture-of-experts model: one loop for pretraining, fine-tuning, distillation.

A run is data in, data out: `fit` takes params and gives new params, leaving its inputs alone.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
