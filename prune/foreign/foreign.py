"""A model of somebody else's, described in a few lines, then observed, planned and pruned.

    moe = prune.Foreign(
        layers=['block_0/moe', 'block_1/moe'], topk=2, gate='softmax_topk_renorm', ffn='swiglu',
        router=Leaf('router/kernel', axis=1),
        experts={'gate': Leaf('w_gate'), 'up': Leaf('w_up'), 'down': Leaf('w_down')})
    cfg, view = moe.view(params)
    stats = moe.observe(params, inputs)
    plan = prune.plan('reap', stats, view, cfg, experts=4)
    small = moe.apply(params, plan)

Letters: E experts, G experts left, D model width, F expert hidden width, L layers.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_jax.base.checks import choice
from moe_jax.base.tree import leaves_with_paths, map_with_path, on_shapes
from moe_jax.calibration.observe_inputs import observe_inputs
from moe_jax.calibration.stats import Stats
from moe_jax.config import CLOSED, Config
from moe_jax.config.checks import CHOICES
from moe_jax.layers import ffn
from moe_jax.routing.gates import GATE
from prune.foreign.leaves import EXPERT, Leaf, Leaves, Place, expert_subtrees, read, without, write
from prune.plans.layer import LayerPlan
from prune.plans.plan import Plan
from prune.surgery.apply import apply


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreign:
    """Where a foreign pytree keeps its MoE layers, and how they compute.

    layers: the path of each MoE layer's subtree, in order ('' is the whole tree). layer_axis: these
      subtrees hold several layers each, stacked on this axis of every array (None: one each).
    router: the kernel; router_bias [E] is added to its logits, correction [E] to the scores that
      select alone. experts: 'up' and 'down', of a gated feed-forward 'gate' too, and their biases
      'up_bias', ...; each a `Leaf`.
    topk, gate, gate_scale, groups, groups_used, ffn, ffn_limit, ffn_alpha, dtype: the fields of
      `moe_jax.Config`.

    Paths join dict keys, list indices and field names by '/'. An array that is not described stays
    as it is: shared experts, norms, attention. One leaf with gate and up in it must be split before
    and joined after. Raises ValueError for a description that makes no model.
    """

    layers: Sequence[str]
    router: Leaf
    experts: Mapping[str, Leaf]
    topk: int
    gate: str
    ffn: str
    layer_axis: int | None = None
    router_bias: Leaf | None = None
    correction: Leaf | None = None
    gate_scale: float = 1.0
    groups: int = 1
    groups_used: int = 1
    ffn_limit: float = 7.0
    ffn_alpha: float = 1.702
    dtype: str = 'float32'

    def __post_init__(self) -> None:
        if isinstance(self.layers, str) or not 0 < len(set(self.layers)) == len(self.layers):
            raise ValueError(f'layers={self.layers!r}: a list of the paths of the MoE layers, each '
                             'once')
        if EXPERT in self.router.path:
            raise ValueError(f'router={self.router}: one array with an axis of experts')
        choice('gate', self.gate, GATE)
        for name in ('ffn', 'dtype'):
            choice(name, getattr(self, name), CHOICES[name])
        some = self._config(1, 1, (2 * self.topk * self.groups,)).replace(ffn_bias=True)
        known = ffn.shapes(some, 1)
        needed = {name for name in known if not name.endswith('_bias')}
        if not needed <= set(self.experts) <= set(known):
            raise ValueError(f'experts has {sorted(self.experts)}; ffn={self.ffn!r} needs '
                             f'{sorted(needed)} and may have {sorted(set(known) - needed)}')

    def view(self, params: Any) -> tuple[Config, dict[str, Any]]:
        """A config of the MoE layers alone, and their parameters in our layout, as copies.

        {'layer_0': {'moe': {'router': {'kernel' [E, D]}, 'experts': {'up' [E, D, F], ...}}}, ...};
        biases that are not described are zero where others are. Raises ValueError for an array that
        is missing (with near ones) or has another shape than the description says.
        """
        view, cfg = on_shapes(self._view, params)
        return cfg, view

    def observe(self, params: Any, inputs: Iterable[Mapping[Any, Any]], **options: Any) -> Stats:
        """Statistics of batches of what each MoE layer reads (`moe_jax.observe_inputs`).

        Each batch: {layer index or its path: array [..., D]}, optional 'mask', 'group', 'tokens'.
        The path of stacked layers stands for [L, ..., D]. options: reservoir, outputs, dense, grams
        of `moe_jax.observe`; `prune.observe_options(method)` says what a method needs.
        """
        cfg, view = self.view(params)
        places = self._places(dict(leaves_with_paths(params)))
        return observe_inputs(cfg, view, (_by_index(places, raw) for raw in inputs), **options)

    def apply(self, params: Any, plan: Plan) -> Any:
        """The foreign tree with the experts of a plan: same structure, axes and dtypes.

        Experts with subtrees of their own are numbered anew from 0. The inputs stay as they are.
        A pure function, as `prune.apply` is. Raises ValueError where a plan needs what this model
        has no place for, or is another's.
        """
        for i, layer in plan.layers.items():
            _check_expressible(i, layer)
        return on_shapes(lambda params: self._applied(params, plan), params)[0]

    def _view(self, params: Any) -> tuple[dict[str, Any], Config]:
        """The parameters of `view`, and its config."""
        leaves = dict(leaves_with_paths(params))
        places = self._places(leaves)
        view = {f'layer_{i}': {'moe': self._layer(leaves, place)}
                for i, place in enumerate(places)}
        sizes = [layer['moe']['experts']['up'].shape for layer in view.values()]
        if len({size[1:] for size in sizes}) > 1:
            raise ValueError(f'layers differ in the [E, D, F] of their experts: {sizes}; describe '
                             'those of equal D and F together')
        self._check_undescribed(leaves, places, [size[0] for size in sizes])
        _, width, hidden = sizes[0]
        cfg = self._config(width, hidden, tuple(size[0] for size in sizes))
        self._fill_biases(cfg, view)
        return view, cfg

    def _applied(self, params: Any, plan: Plan) -> tuple[Any, None]:
        """The tree of `apply`."""
        leaves = dict(leaves_with_paths(params))
        places = self._places(leaves)
        self._check_uniform(places, plan)
        cfg, view = self.view(params)
        small, small_cfg = apply(view, cfg, plan)
        if few := [i for i in plan.layers if small_cfg.topk_in(i) < self.topk]:
            raise ValueError(f'this plan leaves layers {few} fewer experts than the model uses for '
                             f'a token (topk={self.topk}); keep at least as many')
        new: dict[str, Any] = {}
        for members in self._by_prefix(places):
            stacks = [small[f'layer_{i}']['moe'] for i in members]
            for kind, name, leaf in self._leaves():
                new |= write(leaves, [places[i] for i in members], leaf,
                             [stack[kind][name] for stack in stacks])
        out = map_with_path(lambda path, old: new.get(path, old), params)
        gone = {path for i, place in enumerate(places) for _, _, leaf in self._leaves()
                if EXPERT in leaf.path
                for path in expert_subtrees(place, leaf,
                                            range(plan.layers[i].after, cfg.experts[i]))}
        return without(out, gone) if gone else out, None

    def _leaves(self) -> Iterator[tuple[str, str, Leaf]]:
        """Every described leaf, with its two names in our layout."""
        router = {'kernel': self.router, 'bias': self.router_bias, 'correction': self.correction}
        yield from (('router', name, leaf) for name, leaf in router.items() if leaf is not None)
        yield from (('experts', name, leaf) for name, leaf in self.experts.items())

    def _places(self, leaves: Leaves) -> list[Place]:
        """Where each MoE layer is; stacked layers are as many as their router has."""
        if self.layer_axis is None:
            return [Place(prefix.strip('/')) for prefix in self.layers]
        places = []
        for prefix in self.layers:
            place = Place(prefix.strip('/'), 0, self.layer_axis)
            shape = jnp.shape(leaves.get(place.path(self.router), 0))
            if shape and not -len(shape) <= self.layer_axis < len(shape):
                raise ValueError(f'layer_axis={self.layer_axis}: {place.path(self.router)} has '
                                 f'shape {shape}')
            count = shape[self.layer_axis] if shape else 1
            places += [place._replace(index=i) for i in range(count)]
        return places

    def _by_prefix(self, places: Sequence[Place]) -> list[list[int]]:
        """Indices of the layers that share arrays."""
        return [[i for i, place in enumerate(places) if place.prefix == prefix]
                for prefix in dict.fromkeys(place.prefix for place in places)]

    def _layer(self, leaves: Leaves, place: Place) -> dict[str, Any]:
        """One layer in our layout."""
        kernel = read(leaves, place, self.router, (None, None))
        e, d = kernel.shape
        if e < self.topk:
            raise ValueError(f'{place.path(self.router)} reads as {e} experts of width {d}, and a '
                             f'token uses topk={self.topk}; is its axis= right?')
        up = read(leaves, place, self.experts['up'], (e, d, None))
        wanted = ffn.shapes(self._config(d, up.shape[2], (e,)), up.shape[2])
        router = {name: read(leaves, place, leaf, (e,)) for kind, name, leaf in self._leaves()
                  if kind == 'router' and name != 'kernel'}
        experts = {name: up if name == 'up' else read(leaves, place, leaf, (e, *wanted[name]))
                   for name, leaf in self.experts.items()}
        return {'router': {'kernel': kernel, **router}, 'experts': experts}

    def _config(self, width: int, hidden: int, experts: tuple[int, ...]) -> Config:
        biased = any(name.endswith('_bias') for name in self.experts)
        routing: dict[str, Any] = {
            'topk': self.topk, 'gate': self.gate, 'gate_scale': self.gate_scale,
            'groups': self.groups, 'groups_used': self.groups_used,
            'router_bias': self.router_bias is not None,
            'correction': self.correction is not None}
        return Config(
            vocab=1, positions=1, width=width, heads=1, mlp_hidden=1, expert_hidden=hidden,
            experts=experts, capacity_eval=None, ffn=self.ffn, ffn_bias=biased,
            ffn_limit=self.ffn_limit, ffn_alpha=self.ffn_alpha, dtype=self.dtype, **routing,
        )

    def _fill_biases(self, cfg: Config, view: Mapping[str, Any]) -> None:
        for layer in view.values():
            experts = layer['moe']['experts']
            count, dtype = experts['up'].shape[0], experts['up'].dtype
            for name, shape in ffn.shapes(cfg, cfg.expert_hidden).items():
                experts.setdefault(name, jnp.zeros((count, *shape), dtype))

    def _check_undescribed(self, leaves: Leaves, places: Sequence[Place], counts: Sequence[int]
                           ) -> None:
        """Renumbered experts must be described whole: the rest would stay with another's."""
        own = [leaf for _, _, leaf in self._leaves() if EXPERT in leaf.path]
        known = {place.path(leaf, e) for place, count in zip(places, counts, strict=True)
                 for leaf in own for e in range(count)}
        roots = tuple(f'{path}/' for place, count in zip(places, counts, strict=True)
                      for leaf in own for path in expert_subtrees(place, leaf, range(count)))
        rest = [path for path in leaves if path.startswith(roots) and path not in known]
        if rest:
            raise ValueError(f'experts have arrays that are not described: {", ".join(rest[:3])}; '
                             'name them in experts=')

    def _check_uniform(self, places: Sequence[Place], plan: Plan) -> None:
        for members in self._by_prefix(places):
            after = {plan.layers[i].after for i in members if i in plan.layers}
            if len(after) > 1:
                raise ValueError(
                    f'this plan leaves {sorted(after)} experts in layers that are stacked in one '
                    f"array of {places[members[0]].prefix!r}; plan with one experts= or ratio= for "
                    "all, spread='layer', first_layer='same', and for 'm_smoe' "
                    "selection='per_layer'")


def _by_index(places: Sequence[Place], raw: Mapping[Any, Any]) -> dict[Any, Any]:
    """A batch whose inputs are under layer indices."""
    inputs = {key.strip('/') if isinstance(key, str) else key: value for key, value in raw.items()}
    for i, place in enumerate(places):
        if place.prefix not in inputs:
            continue
        value = inputs[place.prefix]
        if place.index is None:
            inputs[i] = value
            continue
        stacked = sum(other.prefix == place.prefix for other in places)
        if len(value) != stacked:
            raise ValueError(f'inputs of {place.prefix!r} have shape {jnp.shape(value)}; the first '
                             f'axis must be its {stacked} layers')
        inputs[i] = value[place.index]
    return inputs


def _check_expressible(index: int, layer: LayerPlan) -> None:
    """Refuse router rows that a layer of as many rows as experts cannot have."""
    alias = layer.alias
    if alias is None or np.array_equal(alias, np.arange(layer.after)):
        return
    if layer.constants is not None:
        what, cure = 'puts constants in the place of experts', "replace='none'"
    elif (alias == CLOSED).any():
        what, cure = 'keeps router rows that are never chosen', "gates='slice'"
    else:
        what, cure = 'lets several router rows share an expert', "router_init='reference'"
    raise ValueError(f'layer {index}: this plan {what}, which a foreign model has no place for; '
                     f'plan with {cure}')
