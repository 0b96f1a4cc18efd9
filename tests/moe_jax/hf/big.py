"""A synthetic Qwen3-MoE of 1 GB, loaded, pruned and exported under a memory limit of 1.3 times it.

    python tests/moe_jax/hf/big.py make FOLDER       # writes the source
    python tests/moe_jax/hf/big.py shrink FOLDER OUT # in a process of its own, limited
    python tests/moe_jax/hf/big.py check OUT         # torch opens the result

The limit is the kernel's (RLIMIT_DATA, private memory) and counts from what the process holds once
jax and this library are imported. Pages of the memory-mapped source are not private: the kernel
takes them back when it needs them.
"""

import json
import resource
import statistics
import sys
from pathlib import Path

import numpy as np

RAW = {
    'model_type': 'qwen3_moe', 'architectures': ['Qwen3MoeForCausalLM'], 'vocab_size': 8192,
    'hidden_size': 768, 'intermediate_size': 1024, 'moe_intermediate_size': 512,
    'num_hidden_layers': 4, 'num_attention_heads': 12, 'num_key_value_heads': 4, 'head_dim': 64,
    'max_position_embeddings': 256, 'num_experts': 160, 'num_experts_per_tok': 4,
    'norm_topk_prob': True, 'torch_dtype': 'bfloat16', 'rope_theta': 10000.0, 'rms_norm_eps': 1e-6,
}
TOKENS = np.random.default_rng(0).integers(0, RAW['vocab_size'], (2, 64)).astype(np.int32)
LIMIT, KEPT = 1.3, 80


def make(folder: Path) -> None:
    """Three shards of random bfloat16, written tensor by tensor.

    Of 256 values, quantiles of the normal distribution, which takes a third as long as normal
    numbers.
    """
    import ml_dtypes

    from moe_jax.families import FAMILIES
    from moe_jax.hf import layout, writer

    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(RAW))
    family = FAMILIES['qwen3_moe']
    planned, normal = [], statistics.NormalDist()
    values = np.array([normal.inv_cdf((i + 0.5) / 256) for i in range(256)])
    for leaf in layout.leaves(family.config(RAW), family):
        shape = leaf.slot.disk_shape(leaf.shape)
        for name in leaf.names:
            def draw(name=name, shape=shape):
                scaled = 1 + 0.1 * values if 'norm' in name else values * shape[-1]**-0.5
                which = np.random.default_rng(list(name.encode())).integers(256, size=shape,
                                                                            dtype=np.uint8)
                return scaled.astype(ml_dtypes.bfloat16)[which]
            planned.append(writer.Planned(name, np.dtype(ml_dtypes.bfloat16), shape, draw))
    files = writer.split(planned, 400_000_000)
    weights = {}
    for i, part in enumerate(files):
        file = f'model-{i + 1:05}-of-{len(files):05}.safetensors'
        writer.write(folder / file, part)
        weights |= dict.fromkeys((t.name for t in part), file)
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weights}))


def shrink(folder: Path, out: Path) -> None:
    """Load, observe, keep half the experts by frequency, export; our logits go beside the result.

    From here on the kernel grants the process no more private memory than it has and LIMIT times
    the size of the model; what it needed is printed.
    """
    import jax

    import moe_jax
    import prune

    jax.devices()
    size = sum(file.stat().st_size for file in folder.glob('*.safetensors'))
    start = private()
    limit = start['VmData'] + int(LIMIT * size)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    cfg, params = moe_jax.load(folder)
    told = {'loaded': private()}
    stats = moe_jax.observe(cfg, params, [{'tokens': TOKENS, 'mask': TOKENS >= 0}])
    told['observed'] = private()
    plan = prune.plan('frequency', stats, params, cfg, experts=KEPT)
    small, small_cfg = prune.apply(params, cfg, plan, donate=True)
    told['pruned'] = private()
    logits = moe_jax.apply(small_cfg, small, TOKENS)
    moe_jax.export_hf(out, small_cfg, small, like=folder)
    told['exported'] = private()
    np.save(f'{out}.npy', logits)
    beyond = {stage: (found['RssAnon'] - start['RssAnon']) / size for stage, found in told.items()}
    print(json.dumps({'size': size, 'times the size': beyond}))


def private() -> dict[str, int]:
    """Bytes of private memory, in use (RssAnon) and granted (VmData)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    fields = dict(line.split(':', 1) for line in lines if ':' in line)
    return {name: int(fields[name].split()[0]) * 1024 for name in ('RssAnon', 'VmData')}


def check(out: Path) -> None:
    """How far our logits and torch's in bfloat16 are from torch's in float32 of the same weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    logits = {'ours': np.load(f'{out}.npy')}
    for dtype in ('float32', 'bfloat16'):
        model = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval()
        assert model.config.num_experts == KEPT
        with torch.no_grad():
            logits[dtype] = model(torch.tensor(TOKENS)).logits.float().numpy()
        del model
    exact = torch.log_softmax(torch.tensor(logits.pop('float32')), -1)
    found = {}
    for name, z in logits.items():
        log_probs = torch.log_softmax(torch.tensor(z), -1)
        kl = (exact.exp() * (exact - log_probs)).sum(-1).mean()
        same = (exact.argmax(-1) == log_probs.argmax(-1)).float().mean()
        found[name] = {'kl': float(kl), 'same': float(same)}
    print(json.dumps(found))


if __name__ == '__main__':
    {'make': make, 'shrink': shrink, 'check': check}[sys.argv[1]](*map(Path, sys.argv[2:]))
