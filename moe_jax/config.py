"""What a model is, as one frozen value, and the letters every file uses.

Letters: B batch, T sequence, N = B*T flat tokens, D model width, F expert hidden width, E experts in
a layer, R router rows (E, unless several rows share an expert), G experts left after pruning,
K experts per token, H heads, V vocabulary, P positions, L layers.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

GATES = ('softmax_topk', 'softmax_topk_renorm')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder whose layer i has `experts[i]` experts (0: a dense feed-forward layer).

    `gate='softmax_topk'` multiplies an expert's output with its raw probability; with `topk=1` that
    is the Switch router of the UNCURL paper. `softmax_topk_renorm` makes the K gates sum to one.
    Capacities are multiples of N*K/E tokens an expert may take, None is dropless. `aliases[i][r]`
    is the expert that router row r of layer i uses; None or () means row r uses expert r.
    """

    vocab: int
    positions: int
    width: int
    heads: int
    mlp_hidden: int
    expert_hidden: int
    experts: tuple[int, ...]
    topk: int = 1
    gate: str = 'softmax_topk'
    capacity_train: float | None = 1.2
    capacity_eval: float | None = 1.0
    min_capacity: int = 4
    balance: float = 0.01
    zloss: float = 0.0
    jitter: float = 0.0
    dtype: str = 'float32'
    aliases: tuple[tuple[int, ...] | None, ...] = ()

    def __post_init__(self) -> None:
        _check_sizes(self)
        _check_routing(self)

    @property
    def layers(self) -> int:
        return len(self.experts)

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the layers that have experts."""
        return tuple(i for i, n in enumerate(self.experts) if n)

    def alias(self, layer: int) -> tuple[int, ...] | None:
        """Expert of each router row of a layer, or None where row r uses expert r."""
        return self.aliases[layer] if self.aliases else None

    def router_rows(self, layer: int) -> int:
        """R, the number of rows of a layer's router."""
        alias = self.alias(layer)
        return len(alias) if alias else self.experts[layer]

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
        return self.replace(experts=tuple(count if n else 0 for n in self.experts), aliases=())

    def fit(self, params: Mapping[str, Any]) -> Self:
        """Reread every layer's expert count from a parameter tree, after surgery on it.

        A layer whose router has as many rows as experts loses its alias; one whose router has more
        rows must already have an alias of that length in this config.
        """
        experts, aliases = list(self.experts), [self.alias(i) for i in range(self.layers)]
        for i in self.moe_layers:
            moe = params[f'layer_{i}']['moe']
            experts[i] = int(moe['experts']['up'].shape[0])
            rows = int(moe['router']['kernel'].shape[0])
            if rows == experts[i] and aliases[i] is not None and len(aliases[i]) != rows:
                aliases[i] = None
            elif rows != experts[i] and (aliases[i] is None or len(aliases[i]) != rows):
                raise ValueError(
                    f'layer_{i}/moe: router has {rows} rows and there are {experts[i]} experts; '
                    'give the alias of each row with cfg.replace(aliases=...)'
                )
        return self.replace(
            experts=tuple(experts),
            aliases=tuple(aliases) if any(a is not None for a in aliases) else (),
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`; unknown or missing fields are an error."""
        raw = json.loads(text)
        known = [f.name for f in dataclasses.fields(cls)]
        for name in raw:
            if name not in known:
                raise ValueError(f'config file: unknown field {name!r}; {nearest(name, known)}')
        raw['experts'] = tuple(raw['experts'])
        raw['aliases'] = tuple(None if a is None else tuple(a) for a in raw.get('aliases', ()))
        return cls(**raw)

    def digest(self) -> str:
        """16 hex digits that identify this config."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """A half sentence for error messages: the nearest valid name, and all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return f'{hint}valid: {", ".join(known)}'


def _check_sizes(cfg: Config) -> None:
    for name in ('vocab', 'positions', 'width', 'heads', 'mlp_hidden', 'expert_hidden', 'topk'):
        value = getattr(cfg, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**24:
            raise ValueError(f'Config.{name}={value!r}: must be a positive integer below 2**24')
    if cfg.width % cfg.heads:
        raise ValueError(f'Config.width={cfg.width} is not divisible by heads={cfg.heads}')
    if not 0 < len(cfg.experts) <= 4096:
        raise ValueError(f'Config.experts has {len(cfg.experts)} layers; it must have 1 to 4096')
    if cfg.dtype not in DTYPES:
        raise ValueError(f'Config.dtype={cfg.dtype!r}; {nearest(cfg.dtype, DTYPES)}')


def _check_routing(cfg: Config) -> None:
    if cfg.gate not in GATES:
        raise ValueError(f'Config.gate={cfg.gate!r}; {nearest(cfg.gate, GATES)}')
    for name in ('capacity_train', 'capacity_eval'):
        value = getattr(cfg, name)
        if value is not None and not value > 0:
            raise ValueError(f'Config.{name}={value}: must be positive, or None for dropless')
    if cfg.aliases and len(cfg.aliases) != cfg.layers:
        raise ValueError(f'Config.aliases has {len(cfg.aliases)} entries for {cfg.layers} layers')
    for i in cfg.moe_layers:
        count, alias = cfg.experts[i], cfg.alias(i)
        if count < 0 or cfg.router_rows(i) < cfg.topk:
            raise ValueError(
                f'Config.experts[{i}]={count}: a layer needs at least topk={cfg.topk} experts'
            )
        if alias is not None and set(alias) != set(range(count)):
            raise ValueError(
                f'Config.aliases[{i}] must use every expert 0..{count - 1} and no other'
            )
