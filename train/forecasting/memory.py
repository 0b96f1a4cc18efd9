"""Bytes that a training step needs on each device of a mesh, from shapes alone.

B rows of a device, T tokens in a row, D width, E experts, K choices per token, V vocabulary.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import Params, leaves_with_paths
from moe_jax.config import Config
from moe_jax.experts import evaluate, forms
from moe_jax.kernels import target
from moe_jax.layers import attention, attention_loop, ffn
from moe_jax.model import decoder
from train.forecasting import mesh
from train.forecasting.mesh import Axes
from train.forecasting.residuals import kept_bytes
from train.loop.options import TrainOptions
from train.objectives import head_loss, losses
from train.trainable.kinds import Leaves, Shape
from train.trainable.resolved import TrainedLeaves, put

FLOAT32 = 4  # bytes of a parameter, gradient or moment
EXCHANGED = 8  # buffers of rows that an exchange holds in the backward pass: sent, arrived, sorted


class Memory(NamedTuple):
    """Bytes on each device.

    params, moments (both of AdamW), gradients; activations: what the backward pass needs, logits
    and exchanged rows included; gathered: copies of parameters that 'fsdp' splits, whole while they
    are used, and gradients of such before they are split; copies: of moments while they are
    updated, where the compiler does not update in place.
    """

    params: int
    moments: int
    gradients: int
    activations: int
    gathered: int
    copies: int

    @property
    def peak(self) -> int:
        """The most at any time: gradients take the place of activations as these are used up."""
        fixed = self.params + self.moments + self.gathered + self.copies
        return fixed + max(self.gradients, self.activations)


def of_step(
    cfg: Config, options: TrainOptions, trained: TrainedLeaves, axes: Axes, *, copies: int = 0,
    cpu: bool = False,
) -> Memory:
    """What one step needs on each device of a mesh with these axis sizes ({}: one device).

    copies: how many copies of the trained parameters the compiler makes to update them. cpu:
    whether the devices are CPUs.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(decoder.shapes(cfg))}
    params = sum(held(axes, path, shape) for path, shape in shapes.items())
    extra = {name: shape for name, shape in trained.shapes.items() if shapes.get(name) != shape}
    params += sum(FLOAT32 * int(np.prod(shape)) for shape in extra.values())
    gradients = sum(held(axes, path, shape) if path not in extra else FLOAT32 * int(np.prod(shape))
                    for path, shape in trained.shapes.items())
    rows = options.batch // mesh.row_parts(axes)
    paths = None if options.trainable is None else frozenset(trained.by_path)
    activations = kept(mesh.on_device(cfg, axes), paths, rows, options.length)
    others, on_the_way = _experts(cfg, axes, rows * options.length)
    # Traced on CPU, attention goes one sequence at a time, which nothing else does.
    if target.platform() == 'cpu' and (mesh.devices(axes) > 1 or not cpu):
        others += cfg.layers * _probabilities(mesh.on_device(cfg, axes), rows, options.length)
    # The logits are gone when the last layer's rows are exchanged for their gradients.
    activations += others + max(_logits(cfg, axes, rows * options.length), on_the_way)
    sums = gradients if options.accumulate > 1 else 0  # of the micro-batches so far
    return Memory(params, 2 * gradients, gradients + sums, activations + sums,
                  _gathered(axes, shapes, trained.shapes), copies * gradients)


def held(axes: Axes, path: str, shape: Shape) -> int:
    """Bytes that each device holds of a float32 leaf."""
    split = mesh.parts(axes, mesh.split_by(axes, path, shape))
    return FLOAT32 * int(np.prod(shape)) // split


def kept(cfg: Config, paths: frozenset[str] | None, rows: int, length: int) -> int:
    """Bytes that the backward pass below the head needs of the forward pass, [rows, length].

    paths: the leaves that train (None: all). Layers of one kind keep the same, so that where
    everything trains few are traced.
    """
    if paths is not None:
        return _kept(cfg, paths, rows, length)
    kinds = [(count, cfg.window(i), cfg.alias(i), cfg.constants_in(i))
             for i, count in enumerate(cfg.experts)]
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    base = _kept(_only(cfg, firsts), None, rows, length)
    more = {kinds[i]: _kept(_only(cfg, [*firsts, i]), None, rows, length) - base
            for i in firsts if kinds.count(kinds[i]) > 1}
    return base + sum((kinds.count(kind) - 1) * each for kind, each in more.items())


@functools.lru_cache(maxsize=64)
def _kept(cfg: Config, paths: frozenset[str] | None, rows: int, length: int) -> int:
    params = decoder.shapes(cfg)
    leaves = {path: leaf for path, leaf in leaves_with_paths(params)
              if paths is None or path in paths}

    def hidden(leaves: Leaves, params: Params, tokens: jax.Array, segments: jax.Array,
               key: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, out = decoder.hidden(cfg, put(params, leaves), tokens, segments, train=True,
                                key=jax.random.wrap_key_data(key))
        return x, losses.auxiliary(out)

    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return kept_bytes(hidden, leaves, params, tokens, tokens,
                      jax.ShapeDtypeStruct((2,), jnp.uint32))


def _only(cfg: Config, layers: list[int]) -> Config:
    """The model with these of its layers."""
    fields = ('experts', 'windows', 'aliases', 'constants')
    return cfg.replace(skip=None, **{name: tuple(getattr(cfg, name)[i] for i in layers)
                                     for name in fields if getattr(cfg, name)})


def _logits(cfg: Config, axes: Axes, tokens: int) -> int:
    """The logits, float32, and their gradient; of one device those of a block."""
    if mesh.devices(axes) == 1:
        return 2 * FLOAT32 * min(tokens * cfg.vocab, head_loss.BLOCK)
    table = 'embed/tokens' if cfg.tied else 'head/kernel'
    split = mesh.split_by(axes, table, (cfg.vocab, cfg.width))
    return 2 * FLOAT32 * tokens * cfg.vocab // mesh.parts(axes, split[:1] if split else ())


@functools.lru_cache(maxsize=64)
def _probabilities(cfg: Config, rows: int, length: int) -> int:
    """What a layer's attention keeps, and does not where it goes one sequence at a time."""
    def of(attend: Callable[..., jax.Array]) -> int:
        return kept_bytes(lambda qkv, seen: attend(*qkv, seen, 1.0), qkv, seen)

    dtype = jnp.dtype(cfg.dtype)
    heads = cfg.kv_heads if cfg.latent is None else cfg.heads
    qkv = tuple(jax.ShapeDtypeStruct((rows, length, count, width), dtype) for count, width in (
        (cfg.heads, cfg.key_width), (heads, cfg.key_width), (heads, cfg.value_width)))
    seen = jax.ShapeDtypeStruct((rows, length, length), jnp.bool_)
    return of(attention.attend) - of(attention_loop.attend)


def _experts(cfg: Config, axes: Axes, tokens: int) -> tuple[int, int]:
    """What expert parallelism adds: rows of other devices that are kept, and rows on their way."""
    width = jnp.dtype(cfg.dtype).itemsize * cfg.width
    total, on_the_way = 0, 0
    for layer in cfg.moe_layers:
        how, topk = mesh.form(cfg, axes, layer), cfg.topk_in(layer)
        if how == 'exchange':
            rows = axes['expert'] * forms.slots_of(axes, tokens * topk)
            on_the_way = max(on_the_way, EXCHANGED * rows * width)
        elif how == 'gather':
            everyone = _dropless(cfg, layer, axes['expert'] * tokens)
            total += everyone - _dropless(cfg, layer, tokens)
    return total, on_the_way


@functools.lru_cache(maxsize=64)
def _dropless(cfg: Config, layer: int, tokens: int) -> int:
    """Bytes that the gradient of a layer's experts keeps of a forward pass over tokens."""
    topk, count, dtype = cfg.topk_in(layer), cfg.experts[layer], jnp.dtype(cfg.dtype)
    weights = {name: jax.ShapeDtypeStruct((count, *shape), jnp.float32)
               for name, shape in ffn.shapes(cfg, cfg.expert_hidden).items()}

    def run(leaves: tuple[Any, jax.Array, jax.Array], ids: jax.Array) -> jax.Array:
        return evaluate.dropless(ffn.of(cfg), *leaves[:2], ids, leaves[2])[0]

    leaves = (weights, jax.ShapeDtypeStruct((tokens, cfg.width), dtype),
              jax.ShapeDtypeStruct((tokens, topk), jnp.float32))
    return kept_bytes(run, leaves, jax.ShapeDtypeStruct((tokens, topk), jnp.int32))


def _gathered(axes: Axes, shapes: Mapping[str, Shape], trained: Mapping[str, Shape]) -> int:
    """Leaves that 'fsdp' splits, whole, and the gradients of experts among them before these are.

    XLA:CPU was seen to scatter the gradients of all layers' experts at the end.
    """
    whole = {path: axes['fsdp'] * held(axes, path, shape) for path, shape in shapes.items()
             if 'fsdp' in mesh.split_by(axes, path, shape)}
    return sum((2 if 'moe/experts/' in path and path in trained else 1) * size
               for path, size in whole.items())
