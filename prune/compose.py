"""Two plans in a row as one: experts first and masks then, or masks first and dropping then.

G experts after a plan, D model width, F expert hidden width.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from prune.align import HIDDEN_AXIS
from prune.masks import matrix, pack, unpack
from prune.plan import LayerPlan, Plan

Arrays = dict[str, np.ndarray]


def then(first: Plan, second: Plan) -> Plan:
    """The plan that does what `first` and then `second` do, `second` being for first's outcome.

    One of the two may change experts and routers; the other must be masks alone. Masks go along
    with the experts that a later plan keeps. Raises ValueError for plans that do not follow one
    another, where both change experts, and for masks of experts that are merged later: a mean of
    masked experts is not zero where one of them is.
    """
    _check_follows(first, second)
    layers = {i: _layer(i, first, first.layers[i], second.layers[i]) for i in first.layers}
    named = {f'{second.method}.{key}': value for key, value in second.options.items()}
    return Plan(
        method=f'{first.method}+{second.method}', layers=layers, experts=first.experts,
        width=first.width, expert_hidden=first.expert_hidden, model=first.model, data=first.data,
        options={**first.options, **named}, clamp=first.clamp or second.clamp,
    )


def _layer(index: int, plan: Plan, first: LayerPlan, second: LayerPlan) -> LayerPlan:
    if second.masks_only:
        base, masks, weights = first, first.masks, first.weights
    elif first.masks_only:
        base, (masks, weights) = second, _moved(index, plan, first, second)
    else:
        raise ValueError(f'layer {index}: both plans change experts, and only masks can join '
                         'another plan; apply the first and plan again on what it gives')
    # New values replace a matrix whole, and what an earlier mask took from it.
    both = {leaf: bits if leaf in second.weights or leaf not in masks else bits & masks[leaf]
            for leaf, bits in second.masks.items()}
    return dataclasses.replace(
        base, masks={**masks, **both}, weights={**weights, **second.weights},
        notes={**first.notes, **second.notes})


def _moved(index: int, plan: Plan, first: LayerPlan, second: LayerPlan) -> tuple[Arrays, Arrays]:
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
        return pack(arranged(leaf, unpack(packed, matrix(leaf, plan.width, plan.expert_hidden))))

    return ({leaf: mask(leaf, packed) for leaf, packed in first.masks.items()},
            {leaf: arranged(leaf, values) for leaf, values in first.weights.items()})


def _check_follows(first: Plan, second: Plan) -> None:
    after = {i: layer.after for i, layer in first.layers.items()}
    before: Mapping[int, int] = {i: n for i, n in enumerate(second.experts) if n}
    sizes = [(plan.width, plan.expert_hidden) for plan in (first, second)]
    if after != before or sizes[0] != sizes[1]:
        raise ValueError(
            f'the first plan leaves {list(after.values())} experts in layers {list(after)} with '
            f'(width, expert_hidden)={sizes[0]}; the second is for {list(before.values())} in '
            f'{list(before)} with {sizes[1]}. Make it for the outcome of the first')
    same = all(layer.masks_only for layer in first.layers.values())
    if same and first.model and second.model and first.model != second.model:
        raise ValueError('the two plans are for different models (their routers differ); make the '
                         'second for the outcome of the first')
