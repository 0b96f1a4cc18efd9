"""The criteria for single weights, by name. A new one is a file here.

A file ends in `METHOD = Method(...)` with one function: `scores` gives every weight a score, of
which the lowest go; `solve` chooses the mask itself and changes the weights that stay. Its
docstring is published in docs/methods.md.
"""

from prune.inputs.discovery import discovered

WEIGHT_METHODS = discovered(__name__, __path__)
