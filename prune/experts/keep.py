"""From the experts to keep to the surgery of a layer: what becomes of the router, and of the rest.

Letters: E experts, G kept, R router rows, D model width, g gates.

'slice' deletes the rows of dropped experts; 'preserve_mass' keeps them in the softmax, never to be
chosen. Where gates are renormalized over the chosen, or are sigmoids, both give kept experts the
gates they had, and rows are deleted. Where gates are raw softmax probabilities (OLMoE, DeepSeek-V2,
Switch), deleting rows makes the gates of all that stay 1/(1 - q) times as large, q being the
probability of the deleted rows for that token.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.config import CLOSED, Config
from prune.experts.common import Gates
from prune.inputs.method import Replace
from prune.plans.layer import LayerPlan

REPLACE_NEEDS = {'none': (), 'mean': ('output_sum', 'moments')}

GROW = 'gates of kept experts grow by 1/(1 - q)'


def keep(
    ids: np.ndarray,
    experts: int,
    notes: Mapping[str, Any] | None = None,
    alias: np.ndarray | None = None,
    constants: np.ndarray | None = None,
) -> LayerPlan:
    """Keep the experts `ids` (ascending) of a layer of `experts`, with their router rows.

    With an alias all router rows stay.
    """
    rows = np.eye(experts)[np.asarray(ids)]
    router = rows if alias is None else np.eye(experts)
    return LayerPlan(mix=rows, router=router, alias=alias, constants=constants, notes=notes or {})


def drop(
    ids: np.ndarray,
    stats: Mapping[str, np.ndarray],
    cfg: Config,
    layer: int,
    *,
    gates: Gates,
    replace: Replace,
    notes: Mapping[str, Any],
) -> LayerPlan:
    """The plan that keeps the experts `ids` of a layer, and notes what happens to the gates.

    replace 'mean': a dropped expert becomes a constant, its mean output over the tokens that were
    routed to it (MoNE), and the router stays as it was.
    """
    experts = cfg.experts[layer]
    slots = np.full(experts, CLOSED)
    slots[ids] = np.arange(len(ids))
    lost = np.flatnonzero(slots == CLOSED)
    notes = dict(notes) | {'gates': effect(lost, stats, cfg, gates, replace)}
    if not cfg.traits.sliceable and replace == 'none':
        return keep(ids, experts, notes, _to_survivors(slots, stats))
    if replace == 'mean' and len(lost):
        evaluated = stats['moments'][0, 0][lost]
        mean = stats['output_sum'][lost] / np.maximum(evaluated, 1)[:, None]
        slots[lost] = len(ids) + np.arange(len(lost))
        return keep(ids, experts, notes, slots, mean)
    if gates == 'preserve_mass' and cfg.traits.rescales and len(lost):
        return keep(ids, experts, notes, slots)
    return keep(ids, experts, notes)


def _to_survivors(slots_E: np.ndarray, stats: Mapping[str, np.ndarray]) -> np.ndarray:
    """The alias [E] of rows that must stay: a dropped expert's goes to the least used survivor.

    The most used rows are placed first; equals go to the lower expert.
    """
    names = [name for name in ('count', 'count_top1') if name in stats]
    count = np.asarray(stats[names[0]] if names else np.ones(len(slots_E)), np.float64)
    alias, use = slots_E.copy(), count[slots_E != CLOSED].copy()
    for row in sorted(np.flatnonzero(slots_E == CLOSED), key=lambda r: -count[r]):
        alias[row] = int(np.argmin(use))
        use[alias[row]] += count[row]
    return alias


def effect(
    lost: np.ndarray, stats: Mapping[str, np.ndarray], cfg: Config, gates: Gates, replace: Replace
) -> str:
    """One line on the gates of the experts that stay: exact, or rescaled and by how much."""
    if not len(lost):
        return 'nothing dropped: exact'
    if replace == 'mean':
        return 'gates as before; dropped experts are constants'
    if not cfg.traits.sliceable:
        return 'router rows of dropped experts go to the least used that stay'
    if cfg.traits.renormalized:
        return 'gates of the chosen sum to one, as before'
    if not cfg.traits.rescales or gates == 'preserve_mass':
        return 'gates of kept experts exactly as before'
    if 'prob_sum' not in stats:
        return f'{GROW}, q the deleted probability'
    q = float(stats['prob_sum'][lost].sum() / max(float(stats['prob_sum'].sum()), 1e-300))
    return (f'{GROW}, q the deleted probability, {q:.3f} on average'
            + (f': x{1 / (1 - q):.2f}' if q < 1 else ''))
