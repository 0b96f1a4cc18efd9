"""Whether the fields of a Config make a model; every refusal names its field.

The functions take the fields as a mapping, so that `config.py` can call them.
"""

from collections.abc import Mapping
from typing import Any

from moe_jax.base.checks import choice, flag, integer, number, sequence
from moe_jax.config.parts import CLOSED, LIMIT
from moe_jax.routing.design import Traits

Fields = Mapping[str, Any]

CHOICES = {
    'dtype': ('float32', 'bfloat16', 'float16'),
    'norm': ('layer', 'rms'),
    'ffn': ('gelu', 'relu', 'swiglu', 'swiglu_clamped'),
    'qk_norm': ('none', 'head', 'full'),
}
SIZES = ('vocab', 'positions', 'width', 'heads', 'mlp_hidden', 'expert_hidden')
COUNTS = ('min_capacity', 'kv_heads', 'head_dim', 'shared_hidden')
RATES = ('norm_eps', 'ffn_limit', 'ffn_alpha', 'embed_scale', 'residual_scale', 'logit_scale')
OPTIONAL = ('capacity_train', 'capacity_eval', 'clip_qkv', 'attention_scale')
FLAGS = ('shared_gate', 'ffn_bias', 'qkv_bias', 'out_bias', 'sinks', 'tied')
PER_LAYER = ('experts', 'windows', 'constants')
MOST_LAYERS, MOST_EXPERTS, MOST_IN_ALL = 4096, 2**16, 2**18


def canonical(raw: Fields) -> dict[str, Any]:
    """Every number as an int or float and every list as a tuple: equal configs hash alike."""
    fields: dict[str, Any] = {}
    for names, least in ((SIZES, 1), (COUNTS, 0)):
        fields |= {n: integer(f'Config.{n}', raw[n], least, LIMIT) for n in names}
    fields |= {n: number(f'Config.{n}', raw[n]) for n in RATES}
    fields |= {n: None if raw[n] is None else number(f'Config.{n}', raw[n]) for n in OPTIONAL}
    fields['kv_heads'] = fields['kv_heads'] or fields['heads']
    if not fields['head_dim']:
        width, heads = fields['width'], fields['heads']
        if width % heads:
            raise ValueError(f'Config.width={width} is not divisible by heads={heads}; give '
                             'head_dim')
        fields['head_dim'] = width // heads
    fields |= {n: _integers(n, raw[n]) for n in PER_LAYER}
    fields['aliases'] = tuple(
        None if alias is None else _integers(f'aliases[{i}]', alias, least=-1)
        for i, alias in enumerate(sequence('Config.aliases', raw['aliases'])))
    for name, valid in CHOICES.items():
        choice(f'Config.{name}', raw[name], valid)
    for name in FLAGS:
        flag(f'Config.{name}', raw[name])
    return fields


def check(cfg: Fields, traits: Traits) -> None:
    """Raise ValueError naming the first field that does not fit the others."""
    _check_layers(cfg)
    _check_attention(cfg)
    _check_rows(cfg, traits)
    _check_skip(cfg, traits)
    _check_groups(cfg, traits)


def _integers(name: str, value: Any, least: int = 0) -> tuple[int, ...]:
    return tuple(integer(f'Config.{name}[{i}]', n, least, LIMIT)
                 for i, n in enumerate(sequence(f'Config.{name}', value)))


def _check_layers(cfg: Fields) -> None:
    counts, layers = cfg['experts'], len(cfg['experts'])
    if not 0 < layers <= MOST_LAYERS:
        raise ValueError(f'Config.experts has {layers} layers; it must have 1 to {MOST_LAYERS}')
    if max(counts) > MOST_EXPERTS:
        raise ValueError(f'Config.experts={max(counts)} in a layer; at most {MOST_EXPERTS}')
    if sum(counts) > MOST_IN_ALL:
        raise ValueError(f'Config.experts={sum(counts)} in all layers; at most {MOST_IN_ALL}')
    for name in ('windows', 'aliases', 'constants'):
        if cfg[name] and len(cfg[name]) != layers:
            raise ValueError(f'Config.{name} has {len(cfg[name])} entries for {layers} layers')
    for name in ('capacity_train', 'capacity_eval'):
        if cfg[name] == 0:
            raise ValueError(f'Config.{name}=0: must be positive, or None for dropless')


def _check_attention(cfg: Fields) -> None:
    heads, kv_heads, latent, rope = (cfg[n] for n in ('heads', 'kv_heads', 'latent', 'rope'))
    if heads % kv_heads:
        raise ValueError(f'Config.heads={heads} is not divisible by kv_heads={kv_heads}')
    if cfg['shared_gate'] and not cfg['shared_hidden']:
        raise ValueError('Config.shared_gate=True: needs shared_hidden, the width of the expert')
    if latent is not None:
        if rope is None or rope.dim != latent.rotary:
            raise ValueError(f'Config.latent.rotary={latent.rotary}: needs rope with this dim')
        if cfg['qk_norm'] != 'none' or cfg['clip_qkv'] is not None or cfg['sinks']:
            raise ValueError('Config.latent: qk_norm, clip_qkv and sinks are not defined with it')
    elif rope is not None and rope.dim > cfg['head_dim']:
        raise ValueError(f'Config.rope.dim={rope.dim}: must be even, and at most '
                         f'head_dim={cfg["head_dim"]}')


def _check_rows(cfg: Fields, traits: Traits) -> None:
    """Enough rows to choose from, and aliases that use each expert and constant."""
    for i, count in enumerate(cfg['experts']):
        alias = cfg['aliases'][i] if cfg['aliases'] else None
        constants = cfg['constants'][i] if cfg['constants'] else 0
        open_rows = count if alias is None else sum(a != CLOSED for a in alias)
        if count and open_rows < traits.topk and not traits.clamp:
            raise ValueError(
                f'Config.experts[{i}]={count}: a layer needs at least topk={traits.topk} experts '
                'to choose from, or clamp=True to use all it has')
        if constants and alias is None:
            raise ValueError(f'Config.constants[{i}]={constants}: needs aliases[{i}], which says '
                             'the router rows they serve')
        if alias is not None and (
                not count or set(alias) - {CLOSED} != set(range(count + constants))):
            raise ValueError(
                f'Config.aliases[{i}] must use each of the {count} experts and {constants} '
                'constants of its layer and no other; it is None where every router row has its own'
            )


def _check_skip(cfg: Fields, traits: Traits) -> None:
    """Thresholds for each MoE layer: K - 1 for 'ratio', one for 'top_p'."""
    if (skip := cfg['skip']) is None:
        return
    if traits.usage == 'mass':
        raise ValueError('Config.skip: leaves out choices of a token, and with this router experts '
                         'choose tokens; lower its capacity instead')
    sizes = [len(row) for row in skip.thresholds]
    each = traits.topk - 1 if skip.kind == 'ratio' else 1
    wanted = [each if count else 0 for count in cfg['experts']]
    if sizes != wanted:
        raise ValueError(f'Config.skip.thresholds has {sizes} numbers in its layers; rule '
                         f'{skip.kind!r} needs {wanted}')


def _check_groups(cfg: Fields, traits: Traits) -> None:
    """Equal groups of enough rows, and room for K choices in the groups that are used."""
    if traits.groups == 1:
        return
    for i, count in enumerate(cfg['experts']):
        if not count:
            continue
        alias = cfg['aliases'][i] if cfg['aliases'] else None
        rows, least = count if alias is None else len(alias), max(traits.group_least, 1)
        if rows % traits.groups or rows // traits.groups < least:
            raise ValueError(
                f'Config.experts[{i}]={rows}: {traits.groups} groups need an equal number of '
                f'experts each, at least {least}; nearest: {traits.nearest(rows)}')
