"""TSEP: fine-tuning that drops the experts a task does not use (Chen et al. 2022, 2206.00277).

During the run a dropped expert is masked, not cut out: its router row gets a bias that no token can
overcome, so that shapes stay and nothing compiles again. `finish` cuts afterwards. E experts.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base import sharding
from moe_jax.base.checks import choice, integer, number
from moe_jax.base.sharding import replicated
from moe_jax.base.tree import Params, at, take
from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.routing import close
from moe_jax.routing.designs.top_k import top_k
from train.loop.fit import Callback
from train.loop.live import Report
from train.loop.logbook import History
from train.loop.options import TrainOptions
from train.loop.state import TrainState
from train.loop.step import Metrics
from train.recipes.finetune import finetune
from train.trainable import resolved
from train.trainable.trainable import rule_of

SIGNALS = {'gate': 'mass', 'hits': 'hits'}  # what `forward` calls them

Use = dict[str, jax.Array]  # of each expert [E] since the last drop, by layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tsep:
    """When experts are dropped, and which.

    Every `window` steps an expert whose share of its layer's signal in the window is below
    beta / (experts alive) is dropped, the lowest first, as long as `least` stay. After step `until`
    (None: half of the run) only the best `final` of each layer stay (None: `least`; the paper: 1),
    and training goes on without further drops. signal: 'gate', the sum of an expert's gates, or
    'hits', its choices. Layers with fewer experts than that are left alone. beta's default is
    MC-SMoE's. With router groups every group loses as many.
    """

    window: int
    least: int
    beta: float = 0.1
    until: int | None = None
    final: int | None = None
    signal: str = 'gate'

    def __post_init__(self) -> None:
        for name in ('window', 'least', 'until', 'final'):
            if (value := getattr(self, name)) is not None or name in ('window', 'least'):
                integer(f'Tsep.{name}', value, 1)
        number('Tsep.beta', self.beta, most=1, note='an average expert is at 1, and 0 drops '
               'nothing before `until`')
        if self.final is not None and self.final > self.least:
            raise ValueError(f'Tsep.final={self.final} exceeds least={self.least}, to which the '
                             'windows may go down already; raise least or lower final')
        choice('Tsep.signal', self.signal, SIGNALS)


def tsep(
    cfg: Config,
    params: Params,
    packed: batches.Packed,
    options: TrainOptions,
    rule: Tsep,
    *,
    out: str | Path | None = None,
    progress: Report | None = None,
    evaluate: Callable[[Config, Params], Mapping[str, float]] | None = None,
) -> tuple[Params, Config, History]:
    """`finetune` under a rule: (small params, small config, history), inputs untouched.

    Each line of the history has 'alive', the experts left in each MoE layer after that step.
    `evaluate` gets the small model as it then stands. The folder `out` keeps the masked model,
    which `finish` makes small. The run is dropless whatever the config's capacities, which are
    shares of all E experts and too little for the few that are left. The balance loss, too, counts
    E rows: it pulls E / alive times as hard as in the small model, and against the rule; balance=0
    leaves it out.
    """
    rule = _resolved(cfg, options, rule)
    resolved.resolve(params, options.trainable)  # refuses what matches no leaf of the caller's
    wide, masked = mask(cfg, params)

    def small(params: Params) -> Mapping[str, float]:
        assert evaluate is not None
        few, few_cfg = finish(cfg, params)
        return evaluate(few_cfg, few)

    masked, history = finetune(
        wide, masked, packed, _without_mask(cfg, options), out=out, progress=progress,
        evaluate=small if evaluate else None, callback=_callback(cfg, rule),
    )
    return *finish(cfg, masked), history


def survivors(
    use_E: np.ndarray, alive_E: np.ndarray, beta: float, least: int, groups: int = 1
) -> np.ndarray:
    """Which experts of one layer stay, bool [E], by their use [E] among those alive [E].

    Of the alive with share use_e / sum(use) < beta / alive the lowest go, the higher index first
    among equals, while `least` stay; beta = inf leaves exactly `least`. From each of the `groups`
    equal groups go as many, that is as many as the group can give that gives fewest.
    """
    alive = int(alive_E.sum())
    use = np.where(alive_E, use_E, 0.0).astype(np.float64)
    total = use.sum()
    # Without any use there is no evidence: all are average.
    share = use / total if np.isfinite(total) and total > 0 else np.full(use.shape, 1.0 / alive)
    share = np.where(alive_E, share, np.inf).reshape(groups, -1)
    weak = (share < beta / alive).sum(axis=1).min()
    count = max(min(int(weak), (alive - least) // groups), 0)
    higher_first = np.broadcast_to(-np.arange(share.shape[1]), share.shape)
    lowest = np.lexsort((higher_first, share), axis=-1)[:, :count]
    stay = np.array(alive_E, bool).reshape(groups, -1)
    np.put_along_axis(stay, lowest, False, axis=1)
    return stay.ravel()


def mask(cfg: Config, params: Params) -> tuple[Config, Params]:
    """A model that computes the same, with room for a mask in its routers; dropless."""
    for i in cfg.moe_layers:
        router = params[f'layer_{i}']['moe']['router']
        count, place = cfg.experts[i], replicated(router['kernel'])
        zeros = {name: jax.device_put(np.zeros(count, np.float32), place) for name in close.LEAVES}
        params = at(params, f'layer_{i}/moe/router', lambda own, zeros=zeros: zeros | own)
    router = top_k(cfg.router, 'TSEP').replace(bias=True, correction=True)
    return cfg.replace(router=router, capacity_train=None, capacity_eval=None), params


def _own(cfg: Config) -> dict[str, bool]:
    router = top_k(cfg.router, 'TSEP')
    return {'bias': router.bias, 'correction': router.correction}


def drop(params: Params, layer: int, stay_E: np.ndarray) -> Params:
    """Params of a `mask` model in which a layer's tokens can choose the experts `stay` [E] only."""

    def closed(router: dict[str, jax.Array]) -> dict[str, jax.Array]:
        shut = close.shut(router, jnp.asarray(stay_E))
        return router | {name: jax.device_put(shut[name], router[name].sharding)
                         for name in close.LEAVES}

    return at(params, f'layer_{layer}/moe/router', closed)


def finish(cfg: Config, params: Params) -> tuple[Params, Config]:
    """The small model of a masked one (cfg: that before `mask`), which computes the same.

    Equal up to rounding where no capacity is in play; the config's own capacities are back.
    """
    own = _own(cfg)
    mesh = sharding.mesh_of(params)
    for i in cfg.moe_layers:
        router = params[f'layer_{i}']['moe']['router']
        if missing := [name for name in close.LEAVES if name not in router]:
            raise ValueError(f'layer_{i}/moe/router has no {missing[0]}: not the params of a TSEP '
                             "run; give those in its folder's model/")
        ids = np.flatnonzero(np.asarray(_alive(router['bias'])))
        router = {name: leaf for name, leaf in router.items() if own.get(name, True)}
        few = {'router': take(router, ids),
               'experts': take(params[f'layer_{i}']['moe']['experts'], ids)}
        params = at(params, f'layer_{i}/moe', lambda moe, few=few: moe | few)
    return params if mesh is None else sharding.place(params, mesh), cfg.fit(params)


def _callback(cfg: Config, rule: Tsep) -> Callback:
    """The rule, its fields all set, as something that a run does after each step.

    The carry is the use of each expert since the last drop, by layer.
    """

    def init(cfg: Config, params: Params) -> Use:
        return {f'layer_{i}': jnp.zeros((cfg.experts[i],), jnp.float32) for i in cfg.moe_layers}

    def after(step: int, state: TrainState, metrics: Metrics, use: Use
              ) -> tuple[TrainState, Metrics, Use]:
        assert rule.until is not None  # `_resolved` has filled it in
        if step <= rule.until:
            seen = metrics['experts'][SIGNALS[rule.signal]]
            use = _add(use, {f'layer_{i}': seen[i] for i in cfg.moe_layers})
            if step % rule.window == 0 or step == rule.until:
                state = state._replace(params=_pruned(cfg, rule, step, state.params, use))
                use = jax.tree.map(lambda x: jax.device_put(np.zeros_like(x), x.sharding), use)
        return state, metrics | {'alive': _counts(_biases(cfg, state.params))}, use

    return Callback(repr(rule), init, after)


def _pruned(cfg: Config, rule: Tsep, step: int, params: Params, use: Use) -> Params:
    """Params after the drops of a window's end, or of `until`."""
    assert rule.final is not None  # `_resolved` has filled it in
    beta, least = (math.inf, rule.final) if step == rule.until else (rule.beta, rule.least)
    for i, bias in zip(cfg.moe_layers, _biases(cfg, params), strict=True):
        alive, seen = np.asarray(_alive(bias)), np.asarray(use[f'layer_{i}'])
        stay = survivors(seen, alive, beta, min(least, cfg.experts[i]), cfg.groups)
        if not np.array_equal(stay, alive):
            params = drop(params, i, stay)
    return params


def _biases(cfg: Config, params: Params) -> list[jax.Array]:
    return [params[f'layer_{i}']['moe']['router']['bias'] for i in cfg.moe_layers]


def _alive(bias: jax.Array) -> jax.Array:
    return close.open_rows(bias)


@jax.jit
def _counts(biases: list[jax.Array]) -> jax.Array:
    return jnp.stack([_alive(bias).sum() for bias in biases])


@jax.jit
def _add(use: Use, more: Use) -> Use:
    return jax.tree.map(jnp.add, use, more)


def _without_mask(cfg: Config, options: TrainOptions) -> TrainOptions:
    """Options under which the leaves that `mask` added do not train: they must stay zero."""
    own = _own(cfg)
    if not (added := [name for name in close.LEAVES if not own[name]]):
        return options
    # Flags may stand at the very start of an expression alone, or enclose what they are for.
    rule = rule_of(options.trainable)
    if rule.leaves is None:
        return options
    enclosed = re.sub(r'^\(\?([aiLmsux]+)\)(.*)$', r'(?\1:\2)', rule.leaves, flags=re.S)
    rest = f'.*(?:{enclosed})' if enclosed else ''
    leaves = f'^(?!.*moe/router/(?:{"|".join(added)})$){rest}'
    if rule is options.trainable:
        return dataclasses.replace(options, trainable=dataclasses.replace(rule, leaves=leaves))
    return dataclasses.replace(options, trainable=leaves)


def _resolved(cfg: Config, options: TrainOptions, rule: Tsep) -> Tsep:
    """The rule with its defaults filled in; ValueError where it does not suit model and run."""
    top_k(cfg.router, 'TSEP')
    until = max(options.steps // 2, 1) if rule.until is None else rule.until
    rule = dataclasses.replace(rule, until=until, final=rule.final or rule.least)
    if until > options.steps:
        raise ValueError(f'Tsep.until={until}: the run has {options.steps} steps')
    if rule.window > until:
        raise ValueError(f'Tsep.window={rule.window}: no window ends by step {until}, after which '
                         'nothing is dropped; shorten it')
    assert rule.final is not None
    if rule.final >= max(cfg.experts):
        raise ValueError(f'Tsep.final={rule.final}: the largest layer has {max(cfg.experts)} '
                         'experts, so that none would ever go; lower it')
    if cfg.aliases or cfg.constants:
        raise ValueError('Config.aliases: TSEP drops a router row with its expert; start from a '
                         'model without merged experts, closed rows or constants')
    for name in ('least', 'final'):
        count = getattr(rule, name)
        if count < cfg.topk:
            raise ValueError(f'Tsep.{name}={count}: a token chooses topk={cfg.topk} experts; '
                             'give at least as many')
        try:
            cfg.replace(experts=tuple(min(count, n) for n in cfg.experts))
        except ValueError as error:
            raise ValueError(f'Tsep.{name}={count}: makes no model: {error}') from None
    return rule
