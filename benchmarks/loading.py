"""How long folders of transformers take to load and to export.

Many tensors: a model of very many very small experts, each matrix a tensor of its own, once. Many
bytes: a model of the same family, ours beside `from_pretrained` and `save_pretrained` in bfloat16
and beside reading the files' bytes (numpy's `fromfile`), in turn in every round; the files are in
the page cache. Our export writes, flushes to disk, takes SHA-256 sums, opens what it has written
and compares it with memory; transformers' writes. Our loading checks that every number is finite.
What transformers saved is read back and held against ours, bit for bit.

Letters: L layers, E experts, D width, F hidden width.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.measured import Measured, Results, compared, median, rounds, seconds
from moe_jax import export_hf, load
from moe_jax.base.tree import leaves_with_paths
from moe_jax.families import FAMILIES
from moe_jax.hf import layout, writer

# L, E, D, F, V
MANY = {'full': (200, 256, 16, 8, 64), 'small': (8, 32, 16, 8, 64)}
LARGE = {'full': (4, 64, 768, 512, 8192), 'small': (2, 8, 128, 64, 512)}
SHARD, ROUNDS, LIMIT = 400_000_000, 3, ('<=', 60.0)


def run(args: argparse.Namespace) -> Results:
    """Many tensors, then many bytes."""
    size = 'small' if args.small else 'full'
    for sizes, measure in ((MANY[size], tensors), (LARGE[size], sized)):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / 'source'
            write(source, *sizes, args.seed)
            names = ' '.join(f'{name}={count}' for name, count in zip('LEDFV', sizes, strict=True))
            yield (f'Qwen3-MoE, {names}, bfloat16, {size_of(source) / 1e6:,.0f} MB',
                   measure(source, args))


def tensors(source: Path, args: argparse.Namespace) -> list[Measured]:
    """Seconds of loading and of exporting a folder, once each."""
    results: list[Any] = []
    loading = seconds(lambda: results.extend(load(source)))
    cfg, params = results
    out = source.with_name('out')
    exporting = seconds(lambda: export_hf(out, cfg, params, like=source))
    count = 3 * sum(cfg.experts)
    return [Measured(f'load {count:,} tensors of experts', loading, 's', LIMIT),
            Measured(f'export {count:,} tensors of experts', exporting, 's', LIMIT)]


def sized(source: Path, args: argparse.Namespace) -> list[Measured]:
    """Megabytes per second of everything, and ratios to transformers."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cfg, params = load(source)
    opened = partial(transformers.AutoModelForCausalLM.from_pretrained, source, dtype='bfloat16')
    peer, out = opened(), source.with_name('out')
    runs = {
        'read the bytes': lambda: bytes_of(source),
        'load': lambda: load(source)[1],
        'load, transformers': opened,
        'export': lambda: export_hf(out, cfg, params, like=source),
        'export, transformers': lambda: peer.save_pretrained(out),
    }
    peer.save_pretrained(out)
    results = [Measured('leaves that transformers reads and saves differently', differ(out, params),
                      '', ('<=', 0))]
    remove = partial(shutil.rmtree, out, ignore_errors=True)
    remove()
    count = args.rounds or (2 if args.small else ROUNDS)
    return results + summary(source, runs, rounds(count, list(runs.values()), remove))


def summary(source: Path, runs: dict[str, Callable[[], Any]], taken: list[list[float]]
         ) -> list[Measured]:
    """Speeds, and the ratios of transformers' time to ours and of ours to reading the bytes."""
    times, size = dict(zip(runs, taken, strict=True)), size_of(source)
    results = [median(name, [size / 1e6 / t for t in each], 'MB/s') for name, each in times.items()]
    for name in ('load', 'export'):
        results += compared(f'{name}, transformers over ours', times[f'{name}, transformers'],
                          times[name])
    return results + compared('load over reading the bytes', times['load'], times['read the bytes'])


def bytes_of(folder: Path) -> list[np.ndarray]:
    """All files of tensors, as bytes."""
    return [np.fromfile(file, np.uint8) for file in files_of(folder)]


def differ(folder: Path, params: Any) -> float:
    """How many leaves of a folder are not bit for bit those of `params`."""
    theirs = dict(leaves_with_paths(load(folder)[1]))
    return float(sum(np.asarray(leaf).tobytes() != np.asarray(theirs[path]).tobytes()
                     for path, leaf in leaves_with_paths(params)))


def size_of(folder: Path) -> int:
    """Bytes of all files of tensors."""
    return sum(file.stat().st_size for file in files_of(folder))


def files_of(folder: Path) -> list[Path]:
    """The files of tensors of a folder."""
    return sorted(folder.glob('*.safetensors'))


def write(folder: Path, layers: int, experts: int, width: int, hidden: int, vocab: int, seed: int
          ) -> None:
    """A folder in the layout of Qwen3-MoE with random weights, tensor by tensor."""
    raw = {
        'model_type': 'qwen3_moe', 'architectures': ['Qwen3MoeForCausalLM'], 'vocab_size': vocab,
        'hidden_size': width, 'intermediate_size': hidden, 'moe_intermediate_size': hidden,
        'num_hidden_layers': layers, 'num_attention_heads': 2, 'num_key_value_heads': 1,
        'head_dim': width // 2, 'max_position_embeddings': 256, 'num_experts': experts,
        'num_experts_per_tok': 4, 'norm_topk_prob': True, 'torch_dtype': 'bfloat16',
        'rope_theta': 10000.0, 'rms_norm_eps': 1e-6,
    }
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(raw))
    family, rng = FAMILIES['qwen3_moe'], np.random.default_rng(seed)
    planned = [planned_of(name, leaf.slot.disk_shape(leaf.shape), rng)
               for leaf in layout.leaves(family.config(raw), family) for name in leaf.names]
    parts, weights = writer.split(planned, SHARD), {}
    for i, part in enumerate(parts):
        file = f'model-{i + 1:05}-of-{len(parts):05}.safetensors'
        writer.write(folder / file, part)
        weights |= dict.fromkeys((tensor.name for tensor in part), file)
    (folder / 'model.safetensors.index.json').write_text(json.dumps(
        {'metadata': {'total_size': sum(t.bytes for t in planned)}, 'weight_map': weights}))


def planned_of(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> writer.Planned:
    """A tensor drawn when it is written."""
    def draw() -> np.ndarray:
        value = rng.standard_normal(shape, np.float32) * np.float32(shape[-1]**-0.5)
        return value.astype(ml_dtypes.bfloat16)

    return writer.Planned(name, np.dtype(ml_dtypes.bfloat16), shape, draw)
