"""What a model is, as one frozen value, and the letters every file uses.

Letters: B batch, T sequence, N = B*T flat tokens, D model width, F expert hidden width, E experts
in a layer, R router rows (E, unless several rows share an expert), G experts left after pruning,
K experts per token, H heads, J key-value heads, C head width, V vocabulary, P positions, L layers.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, cast

from moe_jax.base.checks import nearest
from moe_jax.base.tree import Params
from moe_jax.config.checks import canonical, check
from moe_jax.config.parts import CLOSED, Latent, Rope
from moe_jax.routing.design import Router, Traits
from moe_jax.routing.designs import design
from moe_jax.routing.designs.top_k import OWN, TopK
from moe_jax.routing.skipping import Skip

# Names that Config takes for the settings of the top-k router, beside `router=TopK(...)`, and that
# config files hold for it.
TOP_K = {flat: name for name, flat in OWN.items()} | {
    name: name for name in ('topk', 'gate', 'groups', 'groups_used', 'correction', 'balance',
                            'zloss', 'jitter', 'clamp')}
PARTS = {'rope': Rope, 'latent': Latent, 'skip': Skip}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder whose layer i has `experts[i]` experts (0: a dense feed-forward layer).

    The defaults make the GPT-2 form of the UNCURL paper; the other fields are what the released
    families differ in. Settings of the top-k router may be given by their own names, here and to
    `replace`: Config(topk=2, gate='topk_softmax', ...). Raises ValueError naming the field that
    makes no model.
    """

    # Sizes.
    vocab: int  # V
    positions: int  # P, the longest row
    width: int  # D
    heads: int  # H
    mlp_hidden: int  # hidden units of dense layers
    expert_hidden: int  # F
    experts: tuple[int, ...]  # E of each layer
    kv_heads: int = 0  # J; 0: H
    head_dim: int = 0  # C; 0: D/H
    # Routing.
    router: Router = TopK()  # noqa: RUF009 (frozen): a design of `routing.designs`, its settings
    # aliases[i][r] is the expert that router row r of layer i uses; None: row r uses expert r; ():
    # every layer does so. An entry of E + j stands for constant j, a vector that takes the place of
    # an expert; CLOSED for a row that keeps its share of the softmax and is never chosen.
    aliases: tuple[tuple[int, ...] | None, ...] = ()
    constants: tuple[int, ...] = ()  # constants of each layer; (): none
    skip: Skip | None = None  # which chosen experts are left out at evaluation
    capacity_train: float | None = 1.2  # multiples of N*K/E tokens that an expert may take
    capacity_eval: float | None = 1.0  # None: dropless
    min_capacity: int = 4
    shared_hidden: int = 0  # hidden units of an expert that every token uses; 0: none
    shared_gate: bool = False  # the shared expert is weighted by a sigmoid of its own
    # Block.
    norm: str = 'layer'  # or 'rms'
    norm_eps: float = 1e-5
    ffn: str = 'gelu'  # a key of `layers.ffn.FFN`
    ffn_bias: bool = True
    ffn_limit: float = 7.0  # of the clamped form of ffn
    ffn_alpha: float = 1.702  # of the clamped form of ffn
    qkv_bias: bool = True
    out_bias: bool = True
    qk_norm: str = 'none'  # 'head': each head by itself; 'full': all heads at once
    clip_qkv: float | None = None  # bounds |q|, |k|, |v|
    windows: tuple[int, ...] = ()  # tokens that layer i looks back at, itself included; 0, (): all
    sinks: bool = False  # one learned logit per head in the softmax of attention
    rope: Rope | None = None  # rotary positions; None: a learned table
    latent: Latent | None = None  # attention through low-rank latents
    tied: bool = True  # the head is the token table
    # Multipliers.
    attention_scale: float | None = None  # of q k^T; None: C^-0.5
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    dtype: str = 'float32'  # of computation; routing, softmax, norms and losses stay in float32

    def __post_init__(self) -> None:
        raw = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in canonical(raw).items():
            object.__setattr__(self, name, value)
        check(raw | canonical(raw), self.traits)

    @property
    def traits(self) -> Traits:
        """What depends on the router's design (`routing.design.Traits`)."""
        return self.router.traits

    @property
    def topk(self) -> int:
        """K, experts that a token uses; `topk_in` says it of one layer."""
        return self.traits.topk

    @property
    def groups(self) -> int:
        """Equal groups of router rows, of which a token uses some."""
        return self.traits.groups

    @property
    def clamp(self) -> bool:
        """Whether a layer with fewer router rows than K uses all of them."""
        return self.traits.clamp

    @property
    def layers(self) -> int:
        """L, dense layers included."""
        return len(self.experts)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that have experts."""
        return tuple(i for i, n in enumerate(self.experts) if n)

    @property
    def key_width(self) -> int:
        """Width of a head's queries and keys: C, or both parts of a latent head."""
        return self.head_dim if self.latent is None else self.latent.plain + self.latent.rotary

    @property
    def value_width(self) -> int:
        """Width of a head's values."""
        return self.head_dim if self.latent is None else self.latent.value

    def window(self, layer: int) -> int:
        """How many tokens a layer looks back at, itself included; 0: all."""
        return self.windows[layer] if self.windows else 0

    def alias(self, layer: int) -> tuple[int, ...] | None:
        """Expert of each router row of a layer, or None where row r uses expert r."""
        return self.aliases[layer] if self.aliases else None

    def router_rows(self, layer: int) -> int:
        """R, the number of rows of a layer's router."""
        alias = self.alias(layer)
        return self.experts[layer] if alias is None else len(alias)

    def constants_in(self, layer: int) -> int:
        """How many constants stand in for experts in a layer."""
        return self.constants[layer] if self.constants else 0

    def topk_in(self, layer: int) -> int:
        """K of a layer: places of a token's choices, as the router's design has them."""
        alias = self.alias(layer)
        rows = self.experts[layer] if alias is None else sum(a != CLOSED for a in alias)
        return self.router.places(rows)

    def closed(self, layer: int) -> tuple[bool, ...] | None:
        """Which router rows of a layer are never chosen; None where all may be."""
        alias = self.alias(layer)
        return None if alias is None or CLOSED not in alias else tuple(a == CLOSED for a in alias)

    def replace(self, **fields: Any) -> Self:
        """A copy with some fields changed; an unknown field is an error with the nearest name.

        Settings of the router may be given by the names that `Config` takes.
        """
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        names = TOP_K if isinstance(self.router, TopK) else {
            f.name: f.name for f in dataclasses.fields(cast(Any, self.router))}
        routing = {names[name]: fields.pop(name) for name in list(fields) if name in names
                   and name not in own}
        for name in fields:
            if name not in own:
                raise ValueError(f'Config has no field {name!r}; {nearest(name, [*own, *names])}')
        changed = own | fields
        if routing:
            changed['router'] = changed['router'].replace(**routing)
        return type(self)(**changed)

    def with_experts(self, count: int) -> Self:
        """The same model with `count` experts in every MoE layer."""
        if count < 1:
            raise ValueError(f'experts={count}: a MoE layer needs at least 1 expert')
        return self.replace(experts=tuple(count if n else 0 for n in self.experts), aliases=(),
                            constants=())

    def fit(self, params: Params) -> Self:
        """Reread every layer's expert count from a parameter tree, after surgery on it.

        An alias stays where it has an entry for each router row and uses each expert and constant;
        without one a router needs a row for each expert. Raises ValueError naming the layer where
        neither holds.
        """
        experts, constants = [0] * self.layers, [0] * self.layers
        aliases: list[tuple[int, ...] | None] = [None] * self.layers
        for i in range(self.layers):
            if f'layer_{i}' not in params:
                raise ValueError(f'params have no layer_{i}; this config has {self.layers} layers')
            if 'moe' not in params[f'layer_{i}']:
                continue
            moe, alias = params[f'layer_{i}']['moe'], self.alias(i)
            experts[i] = count = int(moe['experts']['up'].shape[0])
            router = moe.get('router', {})  # a design may have no parameters
            rows = int(router['kernel'].shape[0]) if router else len(alias or range(count))
            constants[i] = int(moe['constants'].shape[0]) if 'constants' in moe else 0
            targets = set(range(count + constants[i]))
            if alias is not None and len(alias) == rows and set(alias) - {CLOSED} == targets:
                aliases[i] = alias
            elif rows != count:
                raise ValueError(
                    f'layer_{i}/moe: router has {rows} rows and there are {count} experts; '
                    'give the alias of each row with cfg.replace(aliases=...)'
                )
        shared = any(alias is not None for alias in aliases)
        return self.replace(
            experts=tuple(experts), aliases=tuple(aliases) if shared else (),
            constants=tuple(constants) if any(constants) else (),
        )

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain values; settings of the top-k router stand among them by its names.

        Another design is a dict under 'router', with its name as 'design'.
        """
        fields = dataclasses.asdict(self)
        settings = fields.pop('router')
        if isinstance(self.router, TopK):
            return fields | {flat: settings[name] for flat, name in TOP_K.items()}
        return fields | {'router': {'design': self.router.design, **settings}}

    def to_json(self) -> str:
        """All fields, in one fixed form: equal configs give equal text."""
        return json.dumps(self.as_dict(), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`; unknown or missing fields are an error."""
        raw = _fields_of(cls, json.loads(text), 'config file', TOP_K)
        for name, part in PARTS.items():
            if raw.get(name) is not None:
                raw[name] = part(**_fields_of(part, raw[name], f'config file, {name}'))
        if 'router' in raw:
            where, settings = 'config file, router', dict(raw['router'])
            kind = design(settings.pop('design', ''))
            raw['router'] = kind(**_fields_of(kind, settings, where))
        return cls(**raw)

    def digest(self) -> str:
        """16 hex digits that identify this config."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _by_flat_names(init: Callable[..., None]) -> Callable[..., None]:
    """Config's `__init__` that takes the settings of the top-k router by the names of `TOP_K`."""

    @functools.wraps(init)
    def wrapped(self: Config, **fields: Any) -> None:
        settings = {TOP_K[name]: fields.pop(name) for name in list(fields) if name in TOP_K}
        if settings:
            router = fields.get('router', TopK())
            if not isinstance(router, TopK):
                raise ValueError(f'Config: {", ".join(sorted(settings))} are settings of the top-k '
                                 f'router, and router is of design {router.design!r}')
            fields['router'] = router.replace(**settings)
        init(self, **fields)

    own, kind = inspect.signature(init), inspect.Parameter.KEYWORD_ONLY
    defaults = TopK()
    more = [inspect.Parameter(flat, kind, default=getattr(defaults, name))
            for flat, name in TOP_K.items()]
    wrapped.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # pyright: ignore
    return wrapped


Config.__init__ = _by_flat_names(Config.__init__)

if not TYPE_CHECKING:
    def _flat(self: Config, name: str) -> Any:
        """Settings of the top-k router by the names that `Config` takes: cfg.gate and the like."""
        if name in TOP_K and 'router' in self.__dict__ and isinstance(self.router, TopK):
            return getattr(self.router, TOP_K[name])
        raise AttributeError(f'Config has no attribute {name!r}')

    Config.__getattr__ = _flat


def _fields_of(
    kind: type, raw: Any, where: str, more: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`raw`, checked to be a dict of the fields of a dataclass, none of the needed ones missing.

    more: further names that are allowed.
    """
    if not isinstance(raw, dict):
        raise ValueError(f'{where}: holds {type(raw).__name__}, not the fields of a '
                         f'{kind.__name__}')
    fields = {f.name: f.default for f in dataclasses.fields(kind)}
    known = [*fields, *(more or ())]
    for name in raw:
        if name not in known:
            raise ValueError(f'{where}: unknown field {name!r}; {nearest(name, known)}')
    for name, default in fields.items():
        if name not in raw and default is dataclasses.MISSING:
            raise ValueError(f'{where}: field {name!r} is missing')
    return dict(raw)
