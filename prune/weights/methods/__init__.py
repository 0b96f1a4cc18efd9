"""The table of criteria for single weights. A new one is a file here and a row.

A file has PAPER, NEEDS (statistics by leaf, read under the default options), COST, SCOPE (the scope
by default) and one function: `scores` gives every weight a score, of which the lowest go; `solve`
chooses the mask itself and changes the weights that stay. Its docstring is published in
docs/methods.md.
"""

from types import MappingProxyType, ModuleType

from prune.weights.methods import (
    gblm,
    lamp,
    magnitude,
    moe_pruner,
    random_weights,
    sparsegpt,
    wanda,
)

WEIGHT_METHODS: MappingProxyType[str, ModuleType] = MappingProxyType({
    'magnitude': magnitude,
    'lamp': lamp,
    'wanda': wanda,
    'moe_pruner': moe_pruner,
    'gblm': gblm,
    'sparsegpt': sparsegpt,
    'random_weights': random_weights,
})
