"""Two plans of a layer in a row as one: experts first and masks then, or masks first and dropping
then.

G experts after a plan, D model width, F expert hidden width.
"""

import dataclasses

import numpy as np

from prune.plans.layer import LayerPlan
from prune.plans.masks import HIDDEN_AXIS, matrix, pack, unpack

Arrays = dict[str, np.ndarray]


def joined(
    index: int, first: LayerPlan, second: LayerPlan, width: int, hidden: int
) -> LayerPlan:
    """What the two plans of layer `index` do, one after the other, in a model of widths D and F."""
    if second.masks_only:
        base, masks, weights = first, first.masks, first.weights
    elif first.masks_only:
        base, (masks, weights) = second, _moved(index, first, second, width, hidden)
    else:
        raise ValueError(f'layer {index}: both plans change experts, and only masks can join '
                         'another plan; apply the first and plan again on what it gives')
    # New values replace a matrix whole, and what an earlier mask took from it.
    both = {leaf: bits if leaf in second.weights or leaf not in masks else bits & masks[leaf]
            for leaf, bits in second.masks.items()}
    return dataclasses.replace(
        base, masks={**masks, **both}, weights={**weights, **second.weights},
        notes={**first.notes, **second.notes})


def _moved(
    index: int, first: LayerPlan, second: LayerPlan, width: int, hidden: int
) -> tuple[Arrays, Arrays]:
    """Masks and values of the experts that `second` keeps, their hidden units in its order."""
    mix = second.mix
    if second.rank or not ((mix == 0) | (mix == 1)).all():
        raise ValueError(
            f'layer {index}: the second plan merges experts that the first one masked, and what is '
            'zero in one of them is not in their mean; merge first, then sparsify')
    ids = np.argmax(mix, axis=1)

    def arranged(leaf: str, values: np.ndarray) -> np.ndarray:
        if second.perms is None:
            return values[ids]
        axis = HIDDEN_AXIS[leaf]
        order = np.expand_dims(second.perms[ids], 3 - axis)
        return np.take_along_axis(values[ids], order, axis=axis)

    def mask(leaf: str, packed: np.ndarray) -> np.ndarray:
        if second.perms is None:
            return packed[ids]
        return pack(arranged(leaf, unpack(packed, matrix(leaf, width, hidden))))

    return ({leaf: mask(leaf, packed) for leaf, packed in first.masks.items()},
            {leaf: arranged(leaf, values) for leaf, values in first.weights.items()})
