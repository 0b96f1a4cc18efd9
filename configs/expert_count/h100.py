"""The paper's expert counts (8, 32, 64, 128) at a size for one GPU: 8 layers, width 512, bf16.

    moe-jax study configs/expert_count/h100.py --cost      # what it takes, before anything starts
    moe-jax study configs/expert_count/h100.py --seeds 3

About 1e17 FLOPs a seed: minutes of arithmetic on one H100. It has not been run on one yet; the
results in docs/results are those of cpu_small.py. After pretraining experts keep a capacity (twice
the mean load) because the dropless loop is made for CPUs.
"""

import dataclasses

from moe_jax.config.presets import h100
from moe_jax.study.expert_count.spec import Method, Recovery, Study
from train import TrainOptions

RIVALS = (
    Method(label='frequency', name='frequency'),
    Method(label='frequency_merge', name='frequency_merge'),
    Method(
        label='m_smoe', name='m_smoe',
        options=(('selection', 'per_layer'), ('router_init', 'reference')),
    ),
    Method(label='random', name='random'),
)


def config() -> Study:
    base = TrainOptions(steps=1, warmup=0, batch=32, length=512, checkpoint_every=500)

    def stage(**fields):
        return dataclasses.replace(base, **fields)

    return Study(
        name='expert_count_h100',
        description='SMoE language models of 8 layers and width 512: is it better to pretrain few '
        'experts, or many and shrink?',
        model=h100(),
        experts=(8, 32, 64, 128),
        pairs=((32, 8), (64, 8), (64, 32), (128, 8), (128, 32), (128, 64)),
        main=Method(label='uncurl', name='uncurl'),
        rivals=RIVALS,
        rival_pairs=((32, 8), (64, 32), (128, 64)),
        tasks=('lm-code', 'lm-drama', 'boolq', 'sst2', 'winogrande', 'gloss_choice'),
        pretrain=stage(steps=2500, peak_lr=1e-3, warmup=100),
        recovery=Recovery(
            warm=stage(steps=30, peak_lr=3e-3, warmup=3),
            prefinetune=stage(steps=50, peak_lr=2e-4, warmup=10),
            finetune=stage(steps=80, peak_lr=2e-4, warmup=8),
        ),
        capacity=2.0,
        corpus_characters=30_000_000,
        observe_tokens=131_072,
        heldout_tokens=65_536,
    )
