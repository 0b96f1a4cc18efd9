"""EEP: evolve which experts stay, then how the others are mixed into them and into the router.

Source: Liu et al., "Efficient Expert Pruning for Sparse Mixture-of-Experts Language Models", arXiv
2407.00945, and its released coefficients. New expert g is sum_e M[g, e] * expert e, and a matrix T
makes the new router. First M = T is one-hot and evolution searches the set; then both matrices
evolve from there by small random changes. No gradients.

Deviations. Fitness is the error of each layer's output on a reservoir, not accuracy on a task:
first from inner products of expert outputs (`prune.subsets.error`), then by evaluating the mixed
experts. T mixes router rows (logits), where the paper mixes probabilities, so that the result is an
ordinary model and no probability is negative. Rows of M are divided by their sum, as a `LayerPlan`
asks. Each layer has matrices of its own (the paper also shares them between layers), and with
router groups nothing is mixed across groups. The second step compares with what the layer's own
experts give on the sampled inputs, even where the reservoir has other targets. The paper leaves the
operators open; here a child takes each new expert from one of two parents, then some entries change
by normal noise. The best always live on, so the result is never worse than the best set found.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import Params, mix
from moe_jax.config import Config
from moe_jax.experts.evaluate import dropless
from moe_jax.layers import ffn
from moe_jax.routing.designs.top_k import choose
from prune.experts.keep import keep
from prune.experts.methods.genetic import gate_mass, search, share
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers, LayerStats
from prune.plans.layer import LayerPlan
from prune.subsets import error as reconstruct
from prune.subsets import search as subsets
from prune.subsets.gates import Rule, rule_of

CHANGED = 0.25  # share of the entries that a mutation changes


class Target(NamedTuple):
    """A layer and its reservoir: inputs [S, D], logits [S, E], correction [E], output [S, D]."""

    experts: Params
    inputs: jax.Array
    logits: jax.Array
    correction: jax.Array | None
    output: jax.Array


def plan(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    population: int = 64,
    generations: int = 30,
    merge_population: int = 16,
    merge_generations: int = 20,
    sigma: float = 0.1,
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer.

    population, generations: of the search for the set, as for `genetic`.
    merge_population, merge_generations: of the matrices; each error evaluates the layer once on the
      reservoir, and 0 generations leave the set as it is.
    sigma: standard deviation of the largest changes; each child draws its own, down to a tenth.
    seed: of all random draws; each layer starts from it anew.
    """
    if population < 1 or merge_population < 1 or not sigma > 0:
        raise ValueError(f'eep: population={population}, merge_population={merge_population}, '
                         f'sigma={sigma}: must be above 0')
    plans = {}
    for i, count in counts.items():
        layer, experts = params[f'layer_{i}']['moe'], cfg.experts[i]
        if count == experts:
            plans[i] = keep(np.arange(experts), experts)
            continue
        sample = reconstruct.sample_of(stats[i], layer, cfg)
        mass, order = gate_mass(stats[i]), subsets.ranked(share(sample), cfg.groups)
        kept = search(sample, cfg, mass, order, count, population=population,
                      generations=generations, seed=seed)
        target = target_of(cfg, layer, stats[i])
        matrices, error = evolved(
            partial(merged_error, cfg, target), kept, order, groups=cfg.groups, sigma=sigma,
            population=merge_population, generations=merge_generations,
            rng=np.random.default_rng(seed),
        )
        plans[i] = LayerPlan(mix=matrices[0], router=matrices[1], notes={
            'kept': kept, 'set_error': reconstruct.error(sample, cfg, kept), 'error': error,
        })
    return plans


def target_of(cfg: Config, layer: Params, seen: LayerStats) -> Target:
    """The reservoir's inputs, and what the layer's own experts give on them with its own gates."""
    gates = np.asarray(seen['sample_gates'], np.float32)
    ids = np.argsort(-gates, axis=1, kind='stable')[:, :min(cfg.topk, gates.shape[1])]
    x = jnp.asarray(seen['sample_input'], jnp.dtype(cfg.dtype))
    output = _routed(ffn.of(cfg), layer['experts'], x, ids.astype(np.int32),
                     np.take_along_axis(gates, ids, axis=1))
    correction = layer['router'].get('correction')
    correction = None if correction is None else jnp.asarray(correction, jnp.float32)
    return Target(layer['experts'], x, jnp.asarray(seen['sample_logits'], jnp.float32), correction,
                  output)


def merged_error(cfg: Config, target: Target, matrices: np.ndarray) -> float:
    """Mean |y_t - y'_t|^2 of the layer made by matrices [2, G, E], M and T."""
    rule = rule_of(cfg, matrices.shape[1])
    squares = _merged_squares(ffn.of(cfg), rule, target, np.asarray(matrices, np.float32))
    return float(np.asarray(squares, np.float64).mean())


def evolved(
    error: Callable[[np.ndarray], float], kept: np.ndarray, order: np.ndarray, *, groups: int,
    sigma: float, population: int, generations: int, rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """The best matrices found, [2, G, E] with M and T, and their error, from the set `kept` [G].

    Noise is drawn for the experts in `order` [E], so that their numbers decide nothing.
    """
    experts, count = len(order), len(kept)
    place = np.argsort(order)
    rows = np.sort(place[kept])
    inside = (np.arange(count) * groups // count)[:, None] == np.arange(experts) * groups // experts
    by_id = np.argsort(order[rows])  # new experts stand in the order of those they grow from

    def named(matrices: np.ndarray) -> np.ndarray:
        return matrices[:, by_id][:, :, place]

    living = np.tile(np.eye(experts)[rows], (1, 2, 1, 1))
    values = np.array([error(named(living[0]))])
    for _ in range(generations):
        a, b = rng.integers(len(living), size=(2, population, 2)).min(axis=2)
        from_a = rng.random((population, 1, count, 1)) < 0.5
        children = np.where(from_a, living[a], living[b])
        size = sigma * 10 ** -rng.random((population, 1, 1, 1))
        noise = rng.normal(size=children.shape) * (rng.random(children.shape) < CHANGED)
        changed = children + size * noise * inside
        total = changed[:, :1].sum(axis=3, keepdims=True)
        sound = total > 0.5
        changed[:, :1] = np.where(sound, changed[:, :1] / np.where(sound, total, 1.0),
                                  children[:, :1])
        living = np.concatenate([living, changed])
        values = np.concatenate([values, [error(named(one)) for one in changed]])
        best = np.argsort(values, kind='stable')[:population]
        living, values = living[best], values[best]
    return named(living[0]), float(values[0])


@partial(jax.jit, static_argnums=0)
def _routed(
    ffn: ffn.Ffn, experts: Params, x: jax.Array, ids: jax.Array, gates: jax.Array
) -> jax.Array:
    """Output [S, D] of a layer for its experts ids [S, K] and gates [S, K]."""
    return dropless(ffn, experts, x, ids, gates)[0].astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1))
def _merged_squares(ffn: ffn.Ffn, rule: Rule, target: Target, matrices: jax.Array) -> jax.Array:
    """|y_t - y'_t|^2 of every token, [S]."""
    exact = jax.lax.Precision.HIGHEST
    logits = jnp.dot(target.logits, matrices[1].T, precision=exact)
    correction = target.correction
    if correction is not None:
        correction = jnp.dot(matrices[1], correction, precision=exact)
    routing = choose(logits, correction, topk=rule.topk, gate=rule.name, scale=rule.scale,
                            groups=rule.groups, groups_used=rule.groups_used)
    experts = mix(target.experts, matrices[0])
    y = dropless(ffn, experts, target.inputs, routing.ids, routing.gates)[0]
    return jnp.square(target.output - y.astype(jnp.float32)).sum(axis=1)


METHOD = Method(
    name='eep',
    title='EEP',
    doc=__doc__,
    paper='EEP, 2024',
    kind='merge',
    cost=Cost.RESERVOIR,
    needs=(*reconstruct.NEEDS, 'sample_gates', 'sample_input'),
    plan=plan,
    place=280,
)
