"""The MoE layer as thin Linen shells: a router, its experts, and what they do for every token."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax.config import Config
from moe_jax.kernels.linear import linear
from moe_jax.layers import ffn
from moe_jax.layers.attention import Rows
from moe_jax.layers.weights import ffn_weights, init_std, normal
from moe_jax.model.choices import Observer, evaluated, in_use, with_constants
from moe_jax.routing.routing import LayerRows, RouterInput, Routing


class Router(nn.Module):
    """The parameters of the layer's router design; tokens -> `Routing` over R rows."""

    cfg: Config
    layer: int

    @nn.compact
    def __call__(self, given: RouterInput) -> Routing:
        cfg, count = self.cfg, self.cfg.router_rows(self.layer)
        draw, zeros = normal(init_std(cfg)), nn.initializers.zeros
        leaves = {
            name: self.param(name, draw if leaf.normal else zeros, leaf.shape, jnp.float32)
            for name, leaf in cfg.router.leaves(cfg.width, count).items()}
        rows = LayerRows(count, cfg.topk_in(self.layer), cfg.closed(self.layer))
        return cfg.router.route(leaves, given, rows)


class ExpertWeights(nn.Module):
    """The experts' arrays, each with E on axis 0."""

    cfg: Config
    count: int

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        return ffn_weights(self, self.cfg, self.cfg.expert_hidden, (self.count,))


class SharedExpert(nn.Module):
    """The expert that every token uses, times the sigmoid of its own gate if it has one; [N, D]."""

    cfg: Config

    @nn.compact
    def __call__(self, x_ND: jax.Array) -> jax.Array:
        cfg = self.cfg
        y = ffn.of(cfg)(ffn_weights(self, cfg, cfg.shared_hidden), x_ND)
        if not cfg.shared_gate:
            return y
        kernel = self.param('score', normal(init_std(cfg)), (cfg.width, 1),
                            jnp.float32)
        score = jax.nn.sigmoid(linear(x_ND, kernel).astype(jnp.float32))
        return (y.astype(jnp.float32) * score).astype(y.dtype)


class SparseMoe(nn.Module):
    """The experts in place of the feed-forward layer, [B, T, D] -> [B, T, D].

    importance [B, T] ranks the tokens that keep all their experts, where the config skips some.
    Sows `Record` as 'record' of the collection 'routing', and `Loads` as 'loads' of 'aux'.
    """

    cfg: Config
    layer: int
    train: bool
    observer: Observer | None = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rows: Rows, importance: jax.Array | None = None
                 ) -> jax.Array:
        cfg, layer, x = self.cfg, self.layer, x_BTD.reshape(-1, self.cfg.width)
        key = self.make_rng('jitter') if self.train and self.has_rng('jitter') else None
        routed = Router(cfg, layer, name='router')(_input(x, rows, key, self.train))
        chosen = in_use(cfg, layer, routed, rows.segments, importance, skips=not self.train)
        weights = ExpertWeights(cfg, cfg.experts[layer], name='experts')()
        y, record, loads = evaluated(cfg, layer, self.train, self.observer, weights, x, chosen,
                                     rows.segments.ravel() > 0)
        if size := cfg.constants_in(layer):
            table = self.param('constants', nn.initializers.zeros, (size, cfg.width), jnp.float32)
            y = with_constants(cfg, layer, y, chosen, table)
        if cfg.shared_hidden:
            y = y + SharedExpert(cfg, name='shared')(x)
        self.sow('routing', 'record', record)
        self.sow('aux', 'loads', loads)
        return y.reshape(x_BTD.shape)


def _input(x_ND: jax.Array, rows: Rows, key: jax.Array | None, train: bool) -> RouterInput:
    tokens = None if rows.tokens is None else rows.tokens.ravel()
    return RouterInput(x_ND, rows.segments.ravel(), rows.segments.shape[0], tokens, key, train)
