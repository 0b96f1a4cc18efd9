"""The scores of a ranking method, and the model with experts closed that a ranking would drop.

Letters: E experts of a layer, G kept.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import Params, at
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.routing import close
from moe_jax.routing.designs.top_k import top_k
from prune.experts.methods import METHODS
from prune.inputs import statistics
from prune.inputs.discovery import find
from prune.inputs.original import check_original
from prune.inputs.request import call_of
from prune.subsets.top import top


def scores(
    name: str,
    stats: Stats | None,
    params: Params,
    cfg: Config,
    *,
    group: str | None = None,
    **method_options: Any,
) -> dict[int, np.ndarray]:
    """{layer: [E]} scores of a method that ranks experts; higher is kept longer.

    Raises ValueError for a method that does not rank, and for what `prune.plan` refuses.
    """
    call = call_of(find(METHODS, name), method_options, group=group)
    if call.method.form != 'scores':
        ranking = [m.name for m in METHODS.values() if m.form == 'scores']
        raise ValueError(f'{name!r} does not rank experts; methods that do: {", ".join(ranking)}')
    check_original(cfg, params, stats)
    fetch = statistics.by_group if call.method.per_group else statistics.fetch
    own = fetch(name, stats, cfg, group, call.needs)
    assert call.method.scores is not None  # the form of the method
    return call.method.scores(own, params, cfg, **call.options)


def kept(ranking: Mapping[int, np.ndarray], counts: Mapping[int, int], groups: int
         ) -> dict[int, np.ndarray]:
    """{layer: bool [E]} of the best of each layer, ties to the lower index."""
    return {i: np.isin(np.arange(len(values)), top(values, counts[i], groups))
            for i, values in ranking.items()}


def shut(
    params: Params, cfg: Config, masks: Mapping[int, np.ndarray]
) -> tuple[dict[str, Any], Config]:
    """The model with the experts outside masks {layer: bool [E]} closed: it computes what the model
    without them (`gates='slice'`) would, in the shapes of the whole one.

    So any number of choices runs through one compiled program. Closed router rows get a bias far
    below all logits, and so does the correction that serves selection.
    """
    router = top_k(cfg.router, 'closing experts')
    out = dict(params)
    for i, mask in masks.items():
        out[f'layer_{i}'] = at(out[f'layer_{i}'], 'moe/router', partial(_shut, open_R=mask))
    return out, cfg.replace(router=router.replace(bias=True))


def _shut(router: Params, open_R: np.ndarray) -> dict[str, Any]:
    names = [name for name in close.LEAVES if name == 'bias' or name in router]
    return close.shut(router, jnp.asarray(open_R), names)
