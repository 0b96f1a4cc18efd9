"""NLLB-200 expert pruning: keep the experts that are first choice often, and with confidence.

Source: Koishekenov, Berard and Nikoulina, "Memory-efficient NLLB-200: Language-specific Expert
Pruning of a Massively Multilingual Machine Translation Model", ACL 2023. Importance of expert e for
one language: top1_e exp(conf_e), with top1_e the share of tokens whose first choice is e, and
conf_e its mean gate on them. Importances are averaged over languages, here the groups of the
statistics, each with the same weight; planning from one group alone is the paper's pruning for one
language. The spread 'mass' is its global threshold: each layer keeps the least set that covers
about the same share of its importance.

Deviations: the ratio of 3 to 1 between encoder and decoder does not arise in a decoder. Gates are
those that the model applies.
"""

from collections.abc import Mapping

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import mean
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers, LayerStats


def scores(
    stats: Mapping[str, Layers], params: Params, cfg: Config
) -> dict[int, np.ndarray]:
    """Mean importance [E] of every MoE layer; stats are {group: {layer: statistics}}."""
    return {
        i: np.mean([importance(layers[i]) for layers in stats.values()], axis=0)
        for i in cfg.moe_layers
    }


def importance(layer_stats: LayerStats) -> np.ndarray:
    """Importance for one group, [E] float64; 0 for an expert that is never the first choice."""
    first = layer_stats['count_top1']
    share = mean(first, layer_stats['tokens'])
    return share * np.exp(mean(layer_stats['top1_gate_sum'], first))


METHOD = Method(
    name='nllb',
    title='NLLB-200',
    doc=__doc__,
    paper='NLLB-200 pruning, ACL 2023',
    kind='drop',
    cost=Cost.PASS,
    needs=('tokens', 'count_top1', 'top1_gate_sum'),
    scores=scores,
    per_group=True,
    spread='mass',
    place=100,
)
