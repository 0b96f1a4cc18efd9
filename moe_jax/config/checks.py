"""Whether the fields of a Config make a model; every refusal names its field."""

import dataclasses
import operator
import sys
from typing import TYPE_CHECKING, Any

from moe_jax.base.checks import nearest

if TYPE_CHECKING:
    from moe_jax.config import Config

GATES = ('softmax_topk', 'softmax_topk_renorm', 'topk_softmax', 'sigmoid_topk',
         'sigmoid_topk_renorm')
CHOICES = {
    'gate': GATES,
    'dtype': ('float32', 'bfloat16', 'float16'),
    'norm': ('layer', 'rms'),
    'ffn': ('gelu', 'swiglu', 'swiglu_clamped'),
    'qk_norm': ('none', 'head', 'full'),
}
ROPES = ('plain', 'linear', 'llama3', 'yarn')
SIZES = ('vocab', 'positions', 'width', 'heads', 'mlp_hidden', 'expert_hidden', 'topk', 'groups',
         'groups_used')
COUNTS = ('min_capacity', 'kv_heads', 'head_dim', 'shared_hidden')
RATES = ('balance', 'zloss', 'jitter', 'gate_scale', 'norm_eps', 'ffn_limit', 'ffn_alpha',
         'embed_scale', 'residual_scale', 'logit_scale')
OPTIONAL = ('capacity_train', 'capacity_eval', 'clip_qkv', 'attention_scale')
FLAGS = ('router_bias', 'correction', 'shared_gate', 'ffn_bias', 'qkv_bias', 'out_bias', 'sinks',
         'tied', 'clamp')
SKIPS = ('ratio', 'top_p')
LIMIT = 2**24  # of every size: far above any model, far below what overflows int32 arithmetic
MOST_LAYERS, MOST_EXPERTS, MOST_IN_ALL = 4096, 2**16, 2**18


def canonical(cfg: 'Config') -> dict[str, Any]:
    """Every number as an int or float and every list as a tuple: equal configs hash alike."""
    fields: dict[str, Any] = {n: _integer(n, getattr(cfg, n), 1) for n in SIZES}
    fields |= {n: _integer(n, getattr(cfg, n), 0) for n in COUNTS}
    fields |= {n: _number(n, getattr(cfg, n)) for n in RATES}
    fields |= {
        n: None if getattr(cfg, n) is None else _number(n, getattr(cfg, n)) for n in OPTIONAL
    }
    aliases = [
        None if alias is None else _integers(f'aliases[{i}]', alias, least=-1)
        for i, alias in enumerate(_items('aliases', cfg.aliases))
    ]
    fields['kv_heads'] = fields['kv_heads'] or fields['heads']
    if not fields['head_dim']:
        if fields['width'] % fields['heads']:
            raise ValueError(f'Config.width={cfg.width} is not divisible by heads={cfg.heads}; '
                             'give head_dim')
        fields['head_dim'] = fields['width'] // fields['heads']
    return fields | {
        'experts': _integers('experts', cfg.experts),
        'windows': _integers('windows', cfg.windows),
        'aliases': tuple(aliases),
        'constants': _integers('constants', cfg.constants),
        'skip': _canonical_skip(cfg),
    }


def _canonical_skip(cfg: 'Config') -> Any:
    if cfg.skip is None:
        return None
    thresholds = tuple(
        tuple(_number(f'skip.thresholds[{i}]', t) for t in _items('skip.thresholds', row))
        for i, row in enumerate(_items('skip.thresholds', cfg.skip.thresholds))
    )
    protect = _number('skip.protect', cfg.skip.protect)
    return dataclasses.replace(cfg.skip, thresholds=thresholds, protect=protect)


def check(cfg: 'Config') -> None:
    """Raise ValueError naming the first field that makes no model."""
    _check_choices(cfg)
    _check_layers(cfg)
    _check_attention(cfg)
    _check_routing(cfg)
    _check_groups(cfg)


def _integer(name: str, value: Any, least: int) -> int:
    try:
        found = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = least - 1
    if not least <= found < LIMIT:
        raise ValueError(f'Config.{name}={value!r}: must be an integer, at least {least} and '
                         f'below {LIMIT}')
    return found


def _number(name: str, value: Any) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not 0 <= value <= sys.float_info.max:
        raise ValueError(f'Config.{name}={value!r}: must be a finite number, at least 0')
    return float(value)


def _items(name: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise ValueError(f'Config.{name}={value!r}: must be a tuple with one entry per layer')
    return tuple(value)


def _integers(name: str, value: Any, least: int = 0) -> tuple[int, ...]:
    return tuple(_integer(f'{name}[{i}]', n, least) for i, n in enumerate(_items(name, value)))


def _check_choices(cfg: 'Config') -> None:
    for name, valid in CHOICES.items():
        if getattr(cfg, name) not in valid:
            value = getattr(cfg, name)
            raise ValueError(f'Config.{name}={value!r}; {nearest(str(value), valid)}')
    for name in FLAGS:
        if not isinstance(getattr(cfg, name), bool):
            raise ValueError(f'Config.{name}={getattr(cfg, name)!r}: must be True or False')


def _check_layers(cfg: 'Config') -> None:
    if not 0 < cfg.layers <= MOST_LAYERS:
        raise ValueError(f'Config.experts has {cfg.layers} layers; it must have 1 to '
                         f'{MOST_LAYERS}')
    if max(cfg.experts) > MOST_EXPERTS:
        raise ValueError(f'Config.experts={max(cfg.experts)} in a layer; at most {MOST_EXPERTS}')
    if sum(cfg.experts) > MOST_IN_ALL:
        raise ValueError(f'Config.experts={sum(cfg.experts)} in all layers; at most {MOST_IN_ALL}')
    for name in ('windows', 'aliases', 'constants'):
        if (value := getattr(cfg, name)) and len(value) != cfg.layers:
            raise ValueError(f'Config.{name} has {len(value)} entries for {cfg.layers} layers')


def _check_attention(cfg: 'Config') -> None:
    if cfg.heads % cfg.kv_heads:
        raise ValueError(f'Config.heads={cfg.heads} is not divisible by kv_heads={cfg.kv_heads}')
    if cfg.shared_gate and not cfg.shared_hidden:
        raise ValueError('Config.shared_gate=True: needs shared_hidden, the width of the expert')
    latent, rope = cfg.latent, cfg.rope
    if latent is not None:
        for name in ('kv', 'plain', 'rotary', 'value'):
            _integer(f'latent.{name}', getattr(latent, name), 1)
        _integer('latent.query', latent.query, 0)
        if rope is None or rope.dim != latent.rotary:
            raise ValueError(f'Config.latent.rotary={latent.rotary}: needs rope with this dim')
        if cfg.qk_norm != 'none' or cfg.clip_qkv is not None or cfg.sinks:
            raise ValueError('Config.latent: qk_norm, clip_qkv and sinks are not defined with it')
    if rope is not None:
        if rope.kind not in ROPES:
            raise ValueError(f'Config.rope.kind={rope.kind!r}; {nearest(str(rope.kind), ROPES)}')
        dim = _integer('rope.dim', rope.dim, 2)
        if dim % 2 or (latent is None and dim > cfg.head_dim):
            raise ValueError(f'Config.rope.dim={dim}: must be even, and at most '
                             f'head_dim={cfg.head_dim}')
        for name in ('theta', 'factor', 'scale', 'low_freq', 'high_freq', 'fast', 'slow'):
            _number(f'rope.{name}', getattr(rope, name))
        _integer('rope.trained', rope.trained, 0)
        if not (rope.theta > 0 and rope.factor > 0 and rope.scale > 0):
            raise ValueError('Config.rope: theta, factor and scale must be above 0')
        if rope.kind == 'llama3' and not rope.low_freq < rope.high_freq:
            raise ValueError(f'Config.rope.low_freq={rope.low_freq}: must be below '
                             f'high_freq={rope.high_freq}')
        if rope.kind == 'yarn' and not (rope.theta > 1 and rope.fast > 0 and rope.slow > 0):
            raise ValueError("Config.rope: kind 'yarn' needs theta above 1, fast and slow above 0")
        if rope.kind in ('llama3', 'yarn') and rope.trained < 1:
            raise ValueError(f'Config.rope.trained={rope.trained}: kind {rope.kind!r} needs the '
                             'row length before scaling')


def _check_routing(cfg: 'Config') -> None:
    for name in ('capacity_train', 'capacity_eval'):
        if getattr(cfg, name) == 0:
            raise ValueError(f'Config.{name}=0: must be positive, or None for dropless')
    if cfg.jitter >= 1:
        raise ValueError(f'Config.jitter={cfg.jitter}: must be below 1, it is a relative noise')
    for i, count in enumerate(cfg.experts):
        alias = cfg.alias(i)
        constants = cfg.constants_in(i)
        open_rows = count if alias is None else sum(a != -1 for a in alias)
        if count and open_rows < cfg.topk and not cfg.clamp:
            raise ValueError(
                f'Config.experts[{i}]={count}: a layer needs at least topk={cfg.topk} experts to '
                'choose from, or clamp=True to use all it has'
            )
        if constants and alias is None:
            raise ValueError(f'Config.constants[{i}]={constants}: needs aliases[{i}], which says '
                             'the router rows they serve')
        if alias is not None and (not count or set(alias) - {-1} != set(range(count + constants))):
            raise ValueError(
                f'Config.aliases[{i}] must use each of the {count} experts and {constants} '
                'constants of its layer and no other; it is None where every router row has its own'
            )
    _check_skip(cfg)


def _check_skip(cfg: 'Config') -> None:
    """A known rule, and thresholds for each MoE layer: K - 1 for 'ratio', one for 'top_p'."""
    if (skip := cfg.skip) is None:
        return
    if skip.kind not in SKIPS:
        raise ValueError(f'Config.skip.kind={skip.kind!r}; {nearest(str(skip.kind), SKIPS)}')
    if skip.protect > 1:
        raise ValueError(f'Config.skip.protect={skip.protect}: a share of the tokens, at most 1')
    sizes = [len(row) for row in skip.thresholds]
    each = cfg.topk - 1 if skip.kind == 'ratio' else 1
    wanted = [each if count else 0 for count in cfg.experts]
    if sizes != wanted:
        raise ValueError(f'Config.skip.thresholds has {sizes} numbers in its layers; rule '
                         f'{skip.kind!r} needs {wanted}')


def _check_groups(cfg: 'Config') -> None:
    """Equal groups of at least two rows, and room for K choices in the groups that are used."""
    if not cfg.groups_used <= cfg.groups:
        raise ValueError(f'Config.groups_used={cfg.groups_used}: there are groups={cfg.groups}')
    if cfg.groups == 1:
        return
    for i in cfg.moe_layers:
        rows = cfg.router_rows(i)
        least = max(group_least(cfg), 1)
        if rows % cfg.groups or rows // cfg.groups < least:
            raise ValueError(
                f'Config.experts[{i}]={rows}: {cfg.groups} groups need an equal number of experts '
                f'each, at least {least}; nearest: {nearest_grouped(cfg, rows)}'
            )


def group_least(cfg: 'Config') -> int:
    """The fewest experts a router group may have: K choices fit into groups_used of them.

    Sigmoid gates score a group by its two best experts, so it needs two.
    """
    two = 2 if cfg.gate.startswith('sigmoid') and cfg.groups > 1 else 1
    return max(two, -(-cfg.topk // cfg.groups_used))


def nearest_grouped(cfg: 'Config', count: int) -> int:
    """The valid number of experts nearest to `count` for a model with router groups."""
    each = max(group_least(cfg), round(count / cfg.groups))
    return each * cfg.groups
