"""The SMoE decoder as thin Linen shells over `ops`, `routing` and `experts`.

GPT-2 form (UNCURL, section on models): learned positions, pre-norm blocks with biases, GELU, tied
head; a MoE layer takes the place of the feed-forward where the config has experts. Linen gives
names, shapes and `sow`; the arithmetic is plain functions on arrays.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax import experts, ops, routing
from moe_jax.config import Config

Params = dict[str, Any]


class Record(NamedTuple):
    """What one MoE layer did: its `Routing`, choices not dropped [N, K], router inputs [N, D]."""

    ids: jax.Array
    gates: jax.Array
    logits: jax.Array
    probs: jax.Array
    kept: jax.Array
    inputs: jax.Array


def init(cfg: Config, key: jax.Array) -> Params:
    """Fresh float32 parameters, a plain nested dict with one subtree per layer.

    Matrices are normal with `init_std(cfg)`; those that write to the residual stream are scaled by
    1/sqrt(2 L) (GPT-2); biases are zero, norm scales one.
    """
    return _init(cfg, key)


@partial(jax.jit, static_argnums=0)
def _init(cfg: Config, key: jax.Array) -> Params:
    one = jnp.ones((1, 1), jnp.int32)
    return MoeLM(cfg).init(key, one, one)['params']


def shapes(cfg: Config) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`, without allocating anything."""
    return jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))


def init_std(cfg: Config) -> float:
    """Standard deviation of fresh matrices, 0.64/sqrt(D): GPT-2's 0.02 at D = 1024."""
    return 0.64 * cfg.width**-0.5


def apply(
    cfg: Config, params: Params, tokens: jax.Array, segments: jax.Array | None = None
) -> jax.Array:
    """Next-token logits [B, T, V] float32 of tokens int32 [B, T], with evaluation capacity.

    segments int32 [B, T] (None: one segment a row): 0 is padding, 1, 2, ... packed documents.
    """
    return forward(cfg, params, tokens, segments)[0]


def forward(
    cfg: Config,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array | None = None,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    routing: bool = False,
) -> tuple[jax.Array, dict[str, Any]]:
    """Logits [B, T, V] float32 and a dict of what happened on the way.

    out['balance'], out['zloss']: scalars summed over layers, times their config coefficients;
    out['load'] [MoE layers]: busiest expert over mean; out['dropped'] [MoE layers]: share of
    choices lost to capacity; with `routing`, out['routing'][layer] holds the layer's `Record` and
    out['valid'] [N] marks tokens that are not padding. `train` selects capacity_train and, with a
    key, router jitter. Which choices a capacity drops depends on all B*T tokens. Raises ValueError,
    or flax's error naming the path, where params, tokens or segments do not fit the config.
    """
    segments = jnp.ones_like(tokens) if segments is None else segments
    _check(cfg, params, tokens, segments)
    logits, state = MoeLM(cfg, train).apply(
        {'params': params}, tokens, segments, rngs={} if key is None else {'jitter': key},
        mutable=['aux', 'routing'] if routing else ['aux'],
    )
    return logits, _collect(cfg, state, segments, routing)


class Attention(nn.Module):
    """Causal self-attention inside segments; x [B, T, D], segments [B, T] -> [B, T, D]."""

    cfg: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments: jax.Array) -> jax.Array:
        cfg, d = self.cfg, self.cfg.width
        qkv = ops.linear(x_BTD, *_dense(self, cfg, 'qkv', d, 3 * d))
        heads = (*x_BTD.shape[:2], cfg.heads, d // cfg.heads)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        mixed = ops.attention(q, k, v, segments).reshape(x_BTD.shape)
        return ops.linear(mixed, *_dense(self, cfg, 'out', d, d, residual=True))


class Mlp(nn.Module):
    """The dense feed-forward layer, [B, T, D] -> [B, T, D]."""

    cfg: Config

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        cfg, d, f = self.cfg, self.cfg.width, self.cfg.mlp_hidden
        hidden = ops.gelu(ops.linear(x_BTD, *_dense(self, cfg, 'up', d, f)))
        return ops.linear(hidden, *_dense(self, cfg, 'down', f, d, residual=True))


class Router(nn.Module):
    """Router kernel [R, D]; x [N, D] -> `Routing` over R rows."""

    cfg: Config
    layer: int

    @nn.compact
    def __call__(self, x_ND: jax.Array, key: jax.Array | None) -> routing.Routing:
        cfg = self.cfg
        shape = (cfg.router_rows(self.layer), cfg.width)
        kernel = self.param('kernel', nn.initializers.normal(init_std(cfg)), shape, jnp.float32)
        return routing.route(
            x_ND, kernel, topk=cfg.topk, gate=cfg.gate, jitter=cfg.jitter, key=key
        )


class ExpertWeights(nn.Module):
    """The experts' arrays, each with E on axis 0."""

    cfg: Config
    layer: int

    @nn.compact
    def __call__(self) -> Params:
        cfg, e = self.cfg, self.cfg.experts[self.layer]
        d, f, std = cfg.width, cfg.expert_hidden, init_std(cfg)
        normal, zeros = nn.initializers.normal, nn.initializers.zeros
        return {
            'up': self.param('up', normal(std), (e, d, f), jnp.float32),
            'up_bias': self.param('up_bias', zeros, (e, f), jnp.float32),
            'down': self.param('down', normal(_residual_std(cfg)), (e, f, d), jnp.float32),
            'down_bias': self.param('down_bias', zeros, (e, d), jnp.float32),
        }


class SparseMoe(nn.Module):
    """The experts in place of the feed-forward layer, [B, T, D] -> [B, T, D]."""

    cfg: Config
    layer: int
    train: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments: jax.Array) -> jax.Array:
        cfg, x, valid = self.cfg, x_BTD.reshape(-1, self.cfg.width), segments.ravel() > 0
        key = self.make_rng('jitter') if self.train and self.has_rng('jitter') else None
        chosen = Router(cfg, self.layer, name='router')(x, key)
        weights = ExpertWeights(cfg, self.layer, name='experts')()
        alias, count = cfg.alias(self.layer), cfg.experts[self.layer]
        ids, gates = routing.to_experts(chosen, valid, alias, count)
        y, kept = _evaluate(cfg, self.train, weights, x, ids, gates)
        self.sow('routing', 'record', Record(*chosen, routing.served(chosen, kept, alias), x))
        self.sow('aux', 'loads', _loads(chosen, ids, kept, valid, count))
        return y.reshape(x_BTD.shape)


class Block(nn.Module):
    """Attention, then feed-forward or experts, each pre-norm and residual; [B, T, D]."""

    cfg: Config
    layer: int
    train: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments: jax.Array) -> jax.Array:
        h = Norm(self.cfg, name='norm_attn')(x_BTD)
        x_BTD = x_BTD + Attention(self.cfg, name='attn')(h, segments)
        h = Norm(self.cfg, name='norm_ffn')(x_BTD)
        if self.cfg.experts[self.layer]:
            return x_BTD + SparseMoe(self.cfg, self.layer, self.train, name='moe')(h, segments)
        return x_BTD + Mlp(self.cfg, name='mlp')(h)


class Norm(nn.Module):
    """Layer norm with scale and bias over the last axis."""

    cfg: Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.cfg.width,)
        scale = self.param('scale', nn.initializers.ones, shape, jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, shape, jnp.float32)
        return ops.layer_norm(x, scale, bias)


class Embed(nn.Module):
    """Token table [V, D] (also the head) and learned positions [P, D]."""

    cfg: Config

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        cfg, normal = self.cfg, nn.initializers.normal(init_std(self.cfg))
        tokens = self.param('tokens', normal, (cfg.vocab, cfg.width), jnp.float32)
        return tokens, self.param('positions', normal, (cfg.positions, cfg.width), jnp.float32)


class MoeLM(nn.Module):
    """The decoder: tokens, segments int32 [B, T] -> logits [B, T, V] float32."""

    cfg: Config
    train: bool = False

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
        table_VD, positions_PD = Embed(cfg, name='embed')()
        x = table_VD[tokens] + positions_PD[ops.positions_in_segments(segments)]
        x = x.astype(dtype)
        for i in range(cfg.layers):
            x = Block(cfg, i, self.train, name=f'layer_{i}')(x, segments)
        x = Norm(cfg, name='norm_final')(x)
        return jnp.einsum('btd,vd->btv', x, table_VD.astype(dtype),
                          preferred_element_type=jnp.float32)


def _check(cfg, params, tokens, segments):
    """What flax would pass over in silence: extra subtrees, rows too long, another shape."""
    if tokens.ndim != 2 or tokens.shape != segments.shape:
        raise ValueError(f'tokens {tokens.shape} and segments {segments.shape} must both be [B, T]')
    if (length := tokens.shape[1]) > cfg.positions:
        raise ValueError(f'{length} tokens in a row; the model has {cfg.positions} positions')
    known = {'embed', 'norm_final', *(f'layer_{i}' for i in range(cfg.layers))}
    if unknown := sorted(set(params) - known):
        raise ValueError(f'params have {", ".join(unknown)}, which a config of {cfg.layers} layers '
                         'does not; is this the config of these params?')


def _evaluate(cfg, train, weights, x, ids, gates):
    """Dropless, or with the capacity that training or evaluation asks for."""
    factor = cfg.capacity_train if train else cfg.capacity_eval
    if factor is None:
        return experts.dropless(weights, x, ids, gates)
    slots = experts.capacity_slots(
        factor, x.shape[0], cfg.topk, weights['up'].shape[0], cfg.min_capacity
    )
    return experts.capacity(weights, x, ids, gates, slots=slots)


def _loads(chosen, ids, kept, valid, count):
    """(balance loss, z-loss, busiest expert over mean, share of choices dropped) of one layer."""
    used = routing.load(ids, valid, count + 1)[:count]
    total = jnp.maximum(used.sum(), 1.0)
    dropped = 1.0 - jnp.sum(kept & (ids < count)).astype(jnp.float32) / total
    return (
        routing.balance_loss(chosen, valid),
        routing.z_loss(chosen, valid),
        used.max() * count / total,
        jnp.where(used.sum() > 0, dropped, 0.0),
    )


def _collect(cfg, state, segments, want_routing):
    loads = [state['aux'][f'layer_{i}']['moe']['loads'][0] for i in cfg.moe_layers]
    rows = [jnp.stack(column) for column in zip(*loads, strict=True)] if loads else [
        jnp.zeros((0,), jnp.float32)] * 4
    out = {
        'balance': cfg.balance * rows[0].sum(),
        'zloss': cfg.zloss * rows[1].sum(),
        'load': rows[2],
        'dropped': rows[3],
    }
    if want_routing:
        layers = {i: state['routing'][f'layer_{i}']['moe'] for i in cfg.moe_layers}
        out['valid'] = segments.ravel() > 0
        out['routing'] = {i: layer['record'][0] for i, layer in layers.items()}
    return out


def _residual_std(cfg: Config) -> float:
    return init_std(cfg) * (2 * cfg.layers) ** -0.5


def _dense(module, cfg, name, rows, columns, residual=False):
    """Kernel `name` [rows, columns] and bias `name_bias` of a Linen module."""
    std = _residual_std(cfg) if residual else init_std(cfg)
    kernel = module.param(name, nn.initializers.normal(std), (rows, columns), jnp.float32)
    return kernel, module.param(f'{name}_bias', nn.initializers.zeros, (columns,), jnp.float32)
