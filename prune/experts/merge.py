"""From groups of experts to a `LayerPlan` that merges each group.

Letters: E experts, G groups, D model width, F expert hidden width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.base.tree import Params
from prune.experts.keep import keep
from prune.experts.routers import ROUTERS, Partition
from prune.plans.layer import LayerPlan
from prune.similarity import align
from prune.similarity.cluster import canonical


def weights(labels: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Merge weights [G, E]: an expert's share of its group's traffic `count` [E].

    A group without any traffic gets the plain mean; an unused expert among used ones gets 0.
    """
    member = np.arange(labels.max() + 1)[:, None] == labels[None, :]
    share = member * np.asarray(count, np.float64)
    share = np.where(share.sum(axis=1, keepdims=True) > 0, share, member)
    return share / share.sum(axis=1, keepdims=True)


def most_used(labels: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The most used expert of each group, [G] ids; ties, the lowest."""
    member = np.arange(labels.max() + 1)[:, None] == labels[None, :]
    return np.argmax(np.where(member, np.asarray(count, np.float64), -1), axis=1)


def merge(
    layer: Params,
    stats: Mapping[str, np.ndarray],
    labels: np.ndarray,
    count: np.ndarray,
    *,
    router_init: str,
    align_to: str,
    seed: int,
    notes: Mapping[str, Any],
) -> LayerPlan:
    """Merge the groups `labels` [E] of a MoE layer's parameters, weighted by `count` [E].

    align_to: a key of ALIGN. Where every expert is its own group the layer stays as it is, router
    included.
    """
    labels = canonical(labels)
    part = Partition(labels, weights(labels, count), most_used(labels, count))
    groups, experts = part.weights.shape
    used = part.weights[labels, np.arange(experts)]
    notes = dict(notes) | {
        'labels': labels,
        'references': part.references,
        'count': np.asarray(count),
        'zero_traffic': np.flatnonzero(np.asarray(count) == 0),
        'weightless': np.flatnonzero(used == 0),
    }
    if groups == experts:
        return keep(np.arange(experts), experts, notes)
    # A lone expert is copied and a weightless one vanishes: neither needs the O(F^3) alignment.
    active = (np.bincount(labels)[labels] > 1) & (used > 0)
    perms = ALIGN[align_to](layer['experts'], part, active)
    # Whether a design that has no kernel can do without is said where a plan is checked.
    kernel = layer.get('router', {}).get('kernel', np.zeros((experts, 0)))
    kernel = np.asarray(kernel).astype(np.float64)
    fields = ROUTERS[router_init](part, stats, kernel, seed)
    return LayerPlan(mix=part.weights, perms=perms, notes=notes, **fields)


def _to_reference(experts: Params, part: Partition, active: np.ndarray) -> np.ndarray:
    return align.permutations(experts, part.references[part.labels], active)


def _to_first(experts: Params, part: Partition, active: np.ndarray) -> np.ndarray:
    return align.permutations(experts, np.zeros_like(part.labels), active)


def _no_alignment(experts: Params, part: Partition, active: np.ndarray) -> None:
    return None


# 'reference': the most used expert of each group; 'first': expert 0 of the layer.
ALIGN = {'reference': _to_reference, 'first': _to_first, 'none': _no_alignment}
