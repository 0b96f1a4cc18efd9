"""What a model is, as one frozen value, and the letters every file uses.

Letters: B batch, T sequence, N = B*T flat tokens, D model width, F expert hidden width, E experts
in a layer, R router rows (E, unless several rows share an expert), G experts left after pruning,
K experts per token, H heads, J key-value heads, C head width, V vocabulary, P positions, L layers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from moe_jax.base.checks import nearest
from moe_jax.config.checks import canonical, check
from moe_jax.config.parts import CLOSED, Latent, Rope, Skip

__all__ = ['CLOSED', 'Config', 'Latent', 'Rope', 'Skip', 'nearest']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder whose layer i has `experts[i]` experts (0: a dense feed-forward layer).

    The defaults make the GPT-2 form of the UNCURL paper; the other fields are what the released
    families differ in. Raises ValueError naming the field that makes no model.

    Sizes. vocab V, positions P (the longest row), width D, heads H, mlp_hidden (of dense layers),
      expert_hidden F, experts (one count per layer); kv_heads J (0: H) and head_dim C (0: D/H).
    Routing. topk K; gate is a key of `routing.GATE`; gates are multiplied with gate_scale. groups:
      router rows fall into that many equal groups and a token chooses among its best groups_used.
      router_bias adds a bias to the logits, correction one that serves selection alone.
      `aliases[i][r]` is the expert that router row r of layer i uses; None means row r uses expert
      r, and `aliases=()` that every layer does so. An entry of E + j stands for constant j, a
      vector that takes the place of an expert (constants[i] of them in layer i), CLOSED for a row
      that keeps its share of the softmax and is never chosen. clamp: a layer with fewer than K rows
      to choose from uses all of them. skip: experts left out at evaluation.
      Capacities are multiples of N*K/E tokens an expert may take, None is dropless.
    shared_hidden: hidden width of an expert that every token uses (0: none); shared_gate: it is
      weighted by a sigmoid of its own.
    Block. norm 'layer' or 'rms'; ffn is a key of `ffn.FFN`; ffn_limit and ffn_alpha serve its
      clamped form; qk_norm 'none', 'head' (each head by itself) or 'full' (all heads at once);
      clip_qkv bounds |q|, |k|, |v|; windows[i] is how many tokens layer i looks back at, itself
      included (0, or `windows=()`: all); sinks adds one learned logit per head to the softmax.
      rope: rotary positions (None: a learned table); latent: attention through low-rank latents.
    Multipliers: attention_scale of q k^T (None: C^-0.5), embed_scale, residual_scale, logit_scale.
    dtype: of computation; float32 is kept for routing, softmax, norms and losses.
    """

    vocab: int
    positions: int
    width: int
    heads: int
    mlp_hidden: int
    expert_hidden: int
    experts: tuple[int, ...]
    kv_heads: int = 0
    head_dim: int = 0
    topk: int = 1
    gate: str = 'softmax_topk'
    gate_scale: float = 1.0
    groups: int = 1
    groups_used: int = 1
    router_bias: bool = False
    correction: bool = False
    shared_hidden: int = 0
    shared_gate: bool = False
    capacity_train: float | None = 1.2
    capacity_eval: float | None = 1.0
    min_capacity: int = 4
    balance: float = 0.01
    zloss: float = 0.0
    jitter: float = 0.0
    norm: str = 'layer'
    norm_eps: float = 1e-5
    ffn: str = 'gelu'
    ffn_bias: bool = True
    ffn_limit: float = 7.0
    ffn_alpha: float = 1.702
    qkv_bias: bool = True
    out_bias: bool = True
    qk_norm: str = 'none'
    clip_qkv: float | None = None
    windows: tuple[int, ...] = ()
    sinks: bool = False
    rope: Rope | None = None
    latent: Latent | None = None
    tied: bool = True
    attention_scale: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    dtype: str = 'float32'
    aliases: tuple[tuple[int, ...] | None, ...] = ()
    constants: tuple[int, ...] = ()
    clamp: bool = False
    skip: Skip | None = None

    def __post_init__(self) -> None:
        for name, value in canonical(self).items():
            object.__setattr__(self, name, value)
        check(self)

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
        """K of a layer: topk, or with `clamp` the number of rows that can be chosen."""
        alias = self.alias(layer)
        rows = self.experts[layer] if alias is None else sum(a != CLOSED for a in alias)
        return min(self.topk, rows) if self.clamp else self.topk

    def replace(self, **fields: Any) -> Self:
        """A copy with some fields changed; an unknown field is an error with the nearest name."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in fields:
            if name not in known:
                raise ValueError(f'Config has no field {name!r}; {nearest(name, known)}')
        return dataclasses.replace(self, **fields)

    def with_experts(self, count: int) -> Self:
        """The same model with `count` experts in every MoE layer."""
        if count < 1:
            raise ValueError(f'experts={count}: a MoE layer needs at least 1 expert')
        return self.replace(experts=tuple(count if n else 0 for n in self.experts), aliases=(),
                            constants=())

    def fit(self, params: Mapping[str, Any]) -> Self:
        """Reread every layer's expert count from a parameter tree, after surgery on it.

        An alias stays where it has an entry for each router row and uses each expert and constant;
        without one a router needs a row for each expert. Raises ValueError naming the layer where
        neither holds.
        """
        experts, aliases, constants = ([empty] * self.layers for empty in (0, None, 0))
        for i in range(self.layers):
            if f'layer_{i}' not in params:
                raise ValueError(f'params have no layer_{i}; this config has {self.layers} layers')
            if 'moe' not in params[f'layer_{i}']:
                continue
            moe, alias = params[f'layer_{i}']['moe'], self.alias(i)
            experts[i] = count = int(moe['experts']['up'].shape[0])
            rows = int(moe['router']['kernel'].shape[0])
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

    def to_json(self) -> str:
        """All fields, in one fixed form: equal configs give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`; unknown or missing fields are an error."""
        raw = _fields_of(cls, json.loads(text), 'config file')
        for name, part in (('rope', Rope), ('latent', Latent), ('skip', Skip)):
            if raw.get(name) is not None:
                raw[name] = part(**_fields_of(part, raw[name], f'config file, {name}'))
        return cls(**raw)

    def digest(self) -> str:
        """16 hex digits that identify this config."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def _fields_of(kind: type, raw: Any, where: str) -> dict[str, Any]:
    """`raw`, checked to be a dict of the fields of a dataclass, none of the needed ones missing."""
    if not isinstance(raw, dict):
        raise ValueError(f'{where}: holds {type(raw).__name__}, not the fields of a '
                         f'{kind.__name__}')
    fields = {f.name: f.default for f in dataclasses.fields(kind)}
    for name in raw:
        if name not in fields:
            raise ValueError(f'{where}: unknown field {name!r}; {nearest(name, list(fields))}')
    for name, default in fields.items():
        if name not in raw and default is dataclasses.MISSING:
            raise ValueError(f'{where}: field {name!r} is missing')
    return dict(raw)
