"""A tiny Hugging Face checkpoint with a tokenizer, statistics of it, and the command run on it."""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import moe_jax
from moe_jax.cli import main
from moe_jax.data import tokenizer
from moe_jax.families import FAMILIES
from moe_jax.hf import layout

LAYERS, EXPERTS, TOPK, WIDTH, HIDDEN = 2, 6, 2, 16, 12
RAW = {
    'model_type': 'olmoe', 'architectures': ['OlmoeForCausalLM'], 'vocab_size': 300,
    'hidden_size': WIDTH, 'intermediate_size': HIDDEN, 'num_hidden_layers': LAYERS,
    'num_attention_heads': 2, 'num_key_value_heads': 2, 'max_position_embeddings': 32,
    'num_experts': EXPERTS, 'num_experts_per_tok': TOPK, 'rms_norm_eps': 1e-5,
    'norm_topk_prob': False, 'torch_dtype': 'float32', 'rope_theta': 500.0,
}
WORDS = ('rope', 'tar', 'salt', 'oil', 'noon', 'dawn')


def write_source(folder: Path) -> Path:
    """The model, with raw softmax gates."""
    rng, family = np.random.default_rng(0), FAMILIES['olmoe']
    save_file({
        name: rng.normal(0, 0.5, leaf.slot.disk_shape(leaf.shape)).astype(np.float32)
        for leaf in layout.leaves(family.config(RAW), family) for name in leaf.names
    }, folder / 'model.safetensors', metadata={'format': 'pt'})
    (folder / 'config.json').write_text(json.dumps(RAW))
    tokenizer.train([' '.join(WORDS)], 300, folder / 'tokenizer.json')
    return folder


def write_stats(path: Path, cfg, params) -> Path:
    """Statistics with a reservoir, of the groups 'one' and 'two'."""
    tokens = np.random.default_rng(1).integers(0, 300, (8, 32)).astype(np.int32)
    moe_jax.observe(cfg, params, (
        {'tokens': part, 'mask': part >= 0, 'group': group}
        for part, group in zip((tokens[:4], tokens[4:]), ('one', 'two'), strict=True)
    ), reservoir=64).save(path)
    return path


def write_texts(folder: Path) -> Path:
    """DIR/<domain>/<n>.txt of the domains harbour and ledger."""
    rng = np.random.default_rng(2)
    for domain in ('harbour', 'ledger'):
        (folder / domain).mkdir()
        for number in range(6):
            (folder / domain / f'{number}.txt').write_text(' '.join(rng.choice(WORDS, 200)))
    return folder


def run(monkeypatch, *arguments) -> int:
    """`moe-jax` with arguments in this process; the exit code."""
    monkeypatch.delenv('MOE_JAX_TRACEBACK', raising=False)
    monkeypatch.setattr(sys, 'argv', ['moe-jax', *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return end.code or 0
    return 0
