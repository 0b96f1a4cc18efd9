"""What a model is, as one frozen value, and the letters every file uses.

Letters: B batch, T sequence, N = B*T flat tokens, D model width, F expert hidden width, E experts
in a layer, R router rows (E, unless several rows share an expert), G experts left after pruning,
K experts per token, H heads, V vocabulary, P positions, L layers.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import operator
from collections.abc import Mapping
from typing import Any, Self

GATES = ('softmax_topk', 'softmax_topk_renorm')
DTYPES = ('float32', 'bfloat16')
SIZES = ('vocab', 'positions', 'width', 'heads', 'mlp_hidden', 'expert_hidden', 'topk')
LIMIT = 2**24  # of every size: far above any model, far below what overflows int32 arithmetic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A decoder whose layer i has `experts[i]` experts (0: a dense feed-forward layer).

    `gate='softmax_topk'` multiplies an expert's output with its raw probability; with `topk=1` that
    is the Switch router of the UNCURL paper. `softmax_topk_renorm` makes the K gates sum to one.
    Capacities are multiples of N*K/E tokens an expert may take, None is dropless. `aliases[i][r]`
    is the expert that router row r of layer i uses; None means row r uses expert r, and
    `aliases=()` that every layer does so. Raises ValueError naming the field that makes no model.
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
        for name, value in _canonical(self).items():
            object.__setattr__(self, name, value)
        _check_sizes(self)
        _check_routing(self)

    @property
    def layers(self) -> int:
        """L, dense layers included."""
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
        return self.experts[layer] if alias is None else len(alias)

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

        An alias stays where it has an entry for each router row and uses each expert; without one a
        router needs a row for each expert. Raises ValueError naming the layer where neither holds.
        """
        experts, aliases = [0] * self.layers, [None] * self.layers
        for i in range(self.layers):
            if f'layer_{i}' not in params:
                raise ValueError(f'params have no layer_{i}; this config has {self.layers} layers')
            if 'moe' not in params[f'layer_{i}']:
                continue
            moe, alias = params[f'layer_{i}']['moe'], self.alias(i)
            experts[i] = count = int(moe['experts']['up'].shape[0])
            rows = int(moe['router']['kernel'].shape[0])
            if alias is not None and len(alias) == rows and set(alias) == set(range(count)):
                aliases[i] = alias
            elif rows != count:
                raise ValueError(
                    f'layer_{i}/moe: router has {rows} rows and there are {count} experts; '
                    'give the alias of each row with cfg.replace(aliases=...)'
                )
        shared = any(alias is not None for alias in aliases)
        return self.replace(experts=tuple(experts), aliases=tuple(aliases) if shared else ())

    def to_json(self) -> str:
        """All fields, in one fixed form: equal configs give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`; unknown or missing fields are an error."""
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError(f'config file: holds {type(raw).__name__}, not the fields of a Config')
        fields = {f.name: f.default for f in dataclasses.fields(cls)}
        for name in raw:
            if name not in fields:
                raise ValueError(
                    f'config file: unknown field {name!r}; {nearest(name, list(fields))}'
                )
        for name, default in fields.items():
            if name not in raw and default is dataclasses.MISSING:
                raise ValueError(f'config file: field {name!r} is missing')
        return cls(**raw)

    def digest(self) -> str:
        """16 hex digits that identify this config."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """A half sentence for error messages: the nearest valid name, and all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return f'{hint}valid: {", ".join(known)}'


def _canonical(cfg: Config) -> dict[str, Any]:
    """Every number as an int or float and every list as a tuple: equal configs hash alike."""
    integers = {name: _integer(name, getattr(cfg, name), 1) for name in SIZES}
    rates = {name: _number(name, getattr(cfg, name)) for name in ('balance', 'zloss', 'jitter')}
    capacities = {
        name: None if getattr(cfg, name) is None else _number(name, getattr(cfg, name))
        for name in ('capacity_train', 'capacity_eval')
    }
    aliases = [
        None if alias is None else _integers(f'aliases[{i}]', alias)
        for i, alias in enumerate(_items('aliases', cfg.aliases))
    ]
    return {
        **integers, **rates, **capacities,
        'min_capacity': _integer('min_capacity', cfg.min_capacity, 0),
        'experts': _integers('experts', cfg.experts),
        'aliases': tuple(aliases),
    }


def _integer(name: str, value: Any, least: int) -> int:
    try:
        found = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = -1
    if not least <= found < LIMIT:
        raise ValueError(f'Config.{name}={value!r}: must be an integer, at least {least} and '
                         f'below {LIMIT}')
    return found


def _number(name: str, value: Any) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not math.isfinite(value) or value < 0:
        raise ValueError(f'Config.{name}={value!r}: must be a finite number, at least 0')
    return float(value)


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise ValueError(f'Config.{name}={value!r}: must be a tuple with one entry per layer')
    return tuple(value)


def _integers(name: str, value: Any) -> tuple[int, ...]:
    return tuple(_integer(f'{name}[{i}]', n, 0) for i, n in enumerate(_items(name, value)))


def _check_sizes(cfg: Config) -> None:
    if cfg.width % cfg.heads:
        raise ValueError(f'Config.width={cfg.width} is not divisible by heads={cfg.heads}')
    if not 0 < cfg.layers <= 4096:
        raise ValueError(f'Config.experts has {cfg.layers} layers; it must have 1 to 4096')
    if cfg.dtype not in DTYPES:
        raise ValueError(f'Config.dtype={cfg.dtype!r}; {nearest(str(cfg.dtype), DTYPES)}')


def _check_routing(cfg: Config) -> None:
    if cfg.gate not in GATES:
        raise ValueError(f'Config.gate={cfg.gate!r}; {nearest(str(cfg.gate), GATES)}')
    for name in ('capacity_train', 'capacity_eval'):
        if getattr(cfg, name) == 0:
            raise ValueError(f'Config.{name}=0: must be positive, or None for dropless')
    if cfg.jitter >= 1:
        raise ValueError(f'Config.jitter={cfg.jitter}: must be below 1, it is a relative noise')
    if cfg.aliases and len(cfg.aliases) != cfg.layers:
        raise ValueError(f'Config.aliases has {len(cfg.aliases)} entries for {cfg.layers} layers')
    for i, count in enumerate(cfg.experts):
        alias = cfg.alias(i)
        if count and cfg.router_rows(i) < cfg.topk:
            raise ValueError(
                f'Config.experts[{i}]={count}: a layer needs at least topk={cfg.topk} experts'
            )
        if alias is not None and (not count or set(alias) != set(range(count))):
            raise ValueError(
                f'Config.aliases[{i}] must use each of the {count} experts of its layer and no '
                'other; it is None where every router row has its own'
            )
