"""One random model twice: ours, and the same weights as transformers in torch opens them.

E experts, K experts per token, V vocabulary, D width, F hidden width, L layers, B rows, T tokens.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

import moe_jax
from benchmarks.torch_layer import use_all_cores
from moe_jax.hf.layout import read_config

SPREAD = 2.0  # on our initial weights: logits and routing that are far from uniform
# How transformers runs experts; the first is its default. Its third way, 'batched_mm', copies the
# weights of an expert for each of its tokens: tens of gigabytes at these sizes.
WAYS = ('grouped_mm', 'eager')


class Sizes(NamedTuple):
    """A decoder of a family of transformers: V, positions, D, L, heads, kv heads, E, K, F."""

    family: str
    vocab: int
    positions: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    experts: int
    topk: int
    hidden: int

    def __str__(self) -> str:
        return (f'{self.family}-like, E={self.experts} K={self.topk} D={self.width} '
                f'F={self.hidden} L={self.layers} V={self.vocab}')


class Both(NamedTuple):
    """Config and parameters of ours, transformers' model in evaluation, and the folder of both."""

    cfg: moe_jax.Config
    params: Any
    peer: Any
    folder: Path


def mixtral(small: bool) -> Sizes:
    """Few large experts; their active weights are about those of the other."""
    return (Sizes('mixtral', 512, 64, 64, 2, 4, 2, 4, 2, 128) if small else
            Sizes('mixtral', 32_000, 256, 512, 4, 8, 2, 8, 2, 1792))


def olmoe(small: bool) -> Sizes:
    """Many small experts."""
    return (Sizes('olmoe', 512, 64, 64, 2, 4, 4, 16, 4, 64) if small else
            Sizes('olmoe', 32_000, 256, 512, 4, 8, 8, 64, 8, 256))


@contextlib.contextmanager
def opened(sizes: Sizes, dtype: str, seed: int, write: Callable[[Path], None] | None = None
           ) -> Iterator[Both]:
    """A random model, exported to a temporary folder and opened by transformers.

    write: puts more files, a tokenizer say, beside the config before the export.
    """
    use_all_cores()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        like, folder = Path(place) / 'like', Path(place) / 'model'
        like.mkdir()
        (like / 'config.json').write_text(json.dumps(_raw(sizes, dtype)))
        if write is not None:
            write(like)
        cfg = read_config(like)[0]
        params = jax.tree.map(
            lambda leaf: (leaf * SPREAD if leaf.ndim > 1 else leaf).astype(jnp.dtype(dtype)),
            moe_jax.init(cfg, jax.random.key(seed)))
        moe_jax.export_hf(folder, cfg, params, like=like)
        peer = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation='sdpa')
        yield Both(cfg, params, peer.eval(), folder)


def _raw(sizes: Sizes, dtype: str) -> dict[str, Any]:
    """config.json as it would lie on the hub."""
    names = {'mixtral': 'num_local_experts', 'olmoe': 'num_experts'}
    return {
        'model_type': sizes.family, names[sizes.family]: sizes.experts,
        'architectures': [f'{sizes.family.capitalize()}ForCausalLM'], 'dtype': dtype,
        'vocab_size': sizes.vocab, 'max_position_embeddings': sizes.positions,
        'hidden_size': sizes.width, 'num_hidden_layers': sizes.layers,
        'num_attention_heads': sizes.heads, 'num_key_value_heads': sizes.kv_heads,
        'num_experts_per_tok': sizes.topk, 'intermediate_size': sizes.hidden,
        'tie_word_embeddings': False, 'pad_token_id': 0, 'bos_token_id': 0, 'eos_token_id': 0,
    }


def every(peer: Any, way: str, tokens: np.ndarray) -> np.ndarray:
    """Log-probability [B, T-1] float32 of tokens[:, 1:], from the logits of all positions."""
    return _of(peer, way, tokens, tokens[:, 1:], 0)


def last(peer: Any, way: str, tokens: np.ndarray, keep: int) -> np.ndarray:
    """Log-probability [B, keep] of the last tokens, from the logits of these positions alone."""
    return _of(peer, way, tokens[:, :-1], tokens[:, -keep:], keep)


def _of(peer, way, read, targets, keep):
    peer.set_experts_implementation(way)
    read, targets = (torch.from_numpy(ids.astype(np.int64)) for ids in (read, targets))
    with torch.inference_mode():
        logits = peer(read, use_cache=False, logits_to_keep=keep).logits
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
        return log_probs[:, :targets.shape[1]].gather(-1, targets[..., None])[..., 0].numpy()


def versions() -> str:
    """Of the peer."""
    return f'transformers {transformers.__version__}, torch {torch.__version__}'
