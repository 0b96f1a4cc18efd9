"""A small language model of 8 experts on two CPU cores: 4 layers, width 32, 5.1M tokens of text.

    moe-jax train configs/train/cpu_small.py               # minutes on two cores
    moe-jax train configs/train/cpu_small.py --smoke       # seconds after the texts are fetched
    moe-jax train configs/train/cpu_small.py --plan-only --peak cpu

The model is in runs/cpu_small/model, ready for `moe-jax observe` and `moe-jax prune`.
"""

import dataclasses

from moe_jax.config.presets import cpu_small, tiny
from train import Run, TrainOptions


def config() -> Run:
    return Run(
        name='cpu_small',
        description='Eight experts, four domains of text in equal shares.',
        # The paper's balance of 0.01 let routing collapse at this learning rate.
        model=cpu_small(experts=8).replace(balance=0.03, zloss=0.001),
        options=TrainOptions(steps=5000, batch=8, length=128, peak_lr=6e-3, warmup=100,
                             evaluate_every=1000, checkpoint_every=500),
    )


def smoke() -> Run:
    full = config()
    return full.replace(
        name='cpu_small_smoke', model=tiny(experts=4),
        options=dataclasses.replace(full.options, steps=10, warmup=2),
        corpus_characters=400_000, heldout_tokens=2048,
    )
