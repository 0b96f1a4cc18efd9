"""A shrunk model learns from the model it was made from: 16 experts of the study to 8, on CPU.

    M=runs/expert_count_cpu_small/models/16-experts-seed-0      # `moe-jax study` leaves it there
    moe-jax observe $M --tasks lm-code --out runs/half/stats.npz
    moe-jax prune $M --method frequency --experts 8 --stats runs/half/stats.npz \
        --out runs/half/shrunk
    moe-jax train configs/train/recover.py

The recovered model is in runs/recover/model. --variant routers repairs the routers alone. --variant
experts is for experts that a plan has changed: merged (--method frequency_merge) or made sparse
(`moe-jax sparsify`). In miniature, from a model that takes seconds to train:

    moe-jax train configs/train/cpu_small.py --smoke
    M=runs/cpu_small_smoke/model
    moe-jax observe $M --tasks lm-code --tokens 4096 --out runs/half_smoke/stats.npz
    moe-jax prune $M --method frequency_merge --experts 2 --stats runs/half_smoke/stats.npz \
        --out runs/half_smoke/shrunk
    moe-jax train configs/train/recover.py --smoke
"""

import dataclasses

from train import TRAINABLE, Distill, Run, TrainOptions


def config() -> Run:
    return Run(
        name='recover',
        description='Eight of sixteen experts, on code, towards what all sixteen said of it.',
        start='runs/half/shrunk',
        teacher='runs/expert_count_cpu_small/models/16-experts-seed-0',
        recipe=Distill(ce=1.0, logits=1.0),
        options=TrainOptions(steps=240, batch=8, length=128, peak_lr=1e-3, warmup=10,
                             weight_decay=0.0, evaluate_every=60),
        tasks={'lm-code': 1.0},
    )


def routers() -> Run:
    full = config()
    return full.replace(
        name='recover_routers', recipe=Distill(ce=0.0, logits=1.0, auxiliary=0.0),
        options=dataclasses.replace(full.options, trainable=TRAINABLE['routers'], peak_lr=1e-2),
    )


def experts() -> Run:
    """Weights that were pruned inside the experts stay zero."""
    full = config()
    return full.replace(
        name='recover_experts', recipe=Distill(ce=1.0, experts='balance'),
        options=dataclasses.replace(full.options, keep_zeros=TRAINABLE['experts']),
    )


def smoke() -> Run:
    full = experts()
    return full.replace(
        name='recover_smoke', start='runs/half_smoke/shrunk', teacher='runs/cpu_small_smoke/model',
        options=dataclasses.replace(full.options, steps=10, warmup=2, evaluate_every=0),
        corpus_characters=400_000, heldout_tokens=2048,
    )
