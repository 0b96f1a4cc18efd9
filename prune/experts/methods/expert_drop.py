"""Expert Drop: keep the experts with the highest mean routing probability.

Source: He et al., "Demystifying the Compression of Mixture-of-Experts Through a Unified Framework",
arXiv 2406.02500, and its released code. Score of expert e: (1/T) sum_t p_te over all T tokens. The
code takes the full softmax for Mixtral and Qwen ('probs') and the gates of chosen experts for
DeepSeek ('gates'). The paper's layer-wise and global dropping are the spreads 'layer' and 'global'
of a budget.

Deviation: the code's global dropping can leave a layer without experts and then removes the layer;
a plan keeps the least number of experts that the router needs.
"""

from typing import Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import mean
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers

ROUTED = {'probs': 'prob_sum', 'gates': 'gate_sum'}


def scores(
    stats: Layers,
    params: Params,
    cfg: Config,
    *,
    by: Literal['probs', 'gates'] = 'probs',
) -> dict[int, np.ndarray]:
    """Mean routing probability [E] of every MoE layer, between 0 and 1.

    by: 'probs', the full router probability (softmax, or sigmoids as shares of one); 'gates', the
      applied gate, 0 where an expert was not chosen.
    """
    return {i: mean(stats[i][ROUTED[by]], stats[i]['tokens']) for i in cfg.moe_layers}


METHOD = Method(
    name='expert_drop',
    title='Expert Drop',
    doc=__doc__,
    paper='Unified MoE Compression, 2024',
    kind='drop',
    cost=Cost.PASS,
    needs=('tokens', 'prob_sum'),
    option_needs={'by': {'probs': (), 'gates': ('gate_sum',)}},
    scores=scores,
    place=30,
)
