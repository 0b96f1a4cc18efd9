"""Experts that no ranking should drop: the few whose outputs have extreme elements.

Such "super experts" (Su et al., arXiv 2507.23279) cause the massive activations that attention
sinks rest on. They may be used rarely and score low by a mean, and a model without them breaks.

Letters: E experts of a layer.
"""

import math
from collections.abc import Mapping

import numpy as np

from moe_jax.base.checks import number

PERCENTILE = 99.5
SHARE_OF_LARGEST = 0.1


def super_experts(
    stats_layers: Mapping[int, Mapping[str, np.ndarray]], layers_share: float = 0.75
) -> dict[int, np.ndarray]:
    """Which experts of each layer are super experts: {layer: bool [E]}.

    stats_layers: statistics of every MoE layer, of which `element_max` [E] is read, the largest
    |f_e(x)_d|. Marked is what exceeds both the 99.5th percentile over all experts of all layers
    (linear between ranks) and a tenth of the largest, in the first floor(layers_share * layers) MoE
    layers; layers_share=1 looks at all of them. Among fewer than 200 experts the percentile lies
    just below the largest, so that at most one is marked, and none where two share the maximum.

    Source: the protection of super experts and of outliers (layers_share=1) in the released code of
    REAP (ICLR 2026), which gives them an infinite score. Deviations: the code takes the largest
    signed element, here it is the largest magnitude; layers may differ in E. Raises ValueError for
    no layers, a share outside (0, 1], a missing statistic, and values that are negative or not
    finite.
    """
    number('layers_share', layers_share, above=0, most=1,
           note='the share of MoE layers, from the first, in which experts are protected')
    if not stats_layers:
        raise ValueError('super_experts: no layer given; pass the statistics of all MoE layers')
    largest = {i: _element_max(i, stats_layers[i]) for i in sorted(stats_layers)}
    pooled = np.concatenate(list(largest.values()))
    limit = max(np.percentile(pooled, PERCENTILE), pooled.max() * SHARE_OF_LARGEST)
    # The nudge makes the floor mean what was written: 0.29 * 100 is 28.999999999999996.
    early = list(largest)[:math.floor(layers_share * len(largest) + 1e-9)]
    return {i: (values > limit) & (i in early) for i, values in largest.items()}


def _element_max(layer: int, layer_stats: Mapping[str, np.ndarray]) -> np.ndarray:
    if 'element_max' not in layer_stats:
        raise ValueError(f"super_experts needs the statistic 'element_max', which layer {layer} "
                         'lacks; observe again')
    values = np.asarray(layer_stats['element_max'], np.float64)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"statistic 'element_max' of layer {layer} has values that are negative "
                         'or not finite; look for NaN in the model or the data, and observe again')
    return values
