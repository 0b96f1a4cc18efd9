"""Writes expected.npz: what transformers in torch says of the tiny checkpoints.

    python tests/moe_jax/hf/make_expected.py

Run it again only when tiny.py changes; it needs the `torch` extra. The arrays are logits of our own
random numbers; the versions that made them are in the file.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.moe_jax.hf import peer, tiny

FILE = Path(__file__).with_name('expected.npz')


def main() -> None:
    """Logits float32 [4, 11, 64] and chosen experts int8 [MoE layers, 44, K] of every case."""
    arrays = {'versions': np.array([f'torch {torch.__version__}',
                                    f'transformers {transformers.__version__}'])}
    for family, variant in tiny.CASES:
        with tempfile.TemporaryDirectory() as folder:
            tiny.write(Path(folder), family, variant)
            logits, chosen = peer.logits(folder, mask=tiny.MASK)
        arrays[f'{family}/{variant}/logits'] = logits
        arrays[f'{family}/{variant}/chosen'] = np.sort(chosen, axis=-1).astype(np.int8)
    np.savez_compressed(FILE, **arrays)


if __name__ == '__main__':
    main()
