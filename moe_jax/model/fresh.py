"""Fresh parameters of a config, and their shapes."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.model.network import MoeLM


def init(cfg: Config, key: jax.Array) -> Params:
    """Fresh float32 parameters, a plain nested dict with one subtree per layer.

    Matrices are normal with `init_std(cfg)`; those that write to the residual stream are scaled by
    1/sqrt(2 L) (GPT-2); biases are zero, norm scales one.
    """
    run, tree = _draws(cfg, key.shape, key.dtype)
    return jax.tree.unflatten(tree, run(key))


@lru_cache(maxsize=64)
def _draws(cfg: Config, shape: tuple[int, ...], dtype: Any):
    """(function of a key that gives the leaves of fresh parameters, their tree).

    Flax draws parameters on its way through the model. Compiled whole, that takes seconds for each
    layer; so what the parameters do not need is dropped, and the rest runs draw by draw, in
    programs that leaves of one shape share, whatever layer or model they belong to.
    """
    def init(key: jax.Array) -> Any:
        one = jnp.ones((1, 1), jnp.int32)
        return MoeLM(cfg).init(key, one, one)['params']

    traced, tree = jax.make_jaxpr(init, return_shape=True)(jax.ShapeDtypeStruct(shape, dtype))
    needed, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals), instantiate=True)
    return jaxpr_as_fun(ClosedJaxpr(needed, traced.consts)), jax.tree.structure(tree)


def shapes(cfg: Config) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`, without allocating anything.

    Layers of one kind have one shape, so that only one of each kind is traced.
    """
    kinds = [(count, cfg.alias(i), cfg.constants_in(i)) for i, count in enumerate(cfg.experts)]
    distinct = tuple(dict.fromkeys(kinds))
    experts, aliases, constants = zip(*distinct, strict=True)
    few = cfg.replace(experts=experts, windows=(), skip=None, constants=constants,
                      aliases=aliases if cfg.aliases else ())
    tree = _shapes(few)
    own = {key: leaf for key, leaf in tree.items() if not key.startswith('layer_')}
    return own | {f'layer_{i}': tree[f'layer_{distinct.index(kind)}']
                  for i, kind in enumerate(kinds)}


@lru_cache(maxsize=64)
def _shapes(cfg: Config) -> Params:
    return jax.eval_shape(lambda key: init(cfg, key), jax.random.key(0))
