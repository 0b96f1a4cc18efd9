"""The paper's question on two CPU cores: pretrain 4, 8, 16 and 32 experts, shrink, compare.

    moe-jax study configs/expert_count/cpu_small.py            # about 15 minutes on two cores
    moe-jax study configs/expert_count/cpu_small.py --smoke    # under 2 minutes, for CI
    moe-jax study configs/expert_count/cpu_small.py --seeds 3  # what docs/results holds

Expect: held-out loss of about 3.9 to 4.4 nats per token by domain after pretraining.
"""

import dataclasses

from moe_jax.presets import cpu_small, tiny
from moe_jax.study.spec import Method, Recovery, Study
from train import TrainOptions

UNCURL = Method(label='uncurl', name='uncurl')
RIVALS = (
    Method(label='frequency', name='frequency'),
    Method(label='frequency_merge', name='frequency_merge'),
    Method(label='random', name='random'),
)


def config() -> Study:
    rows, length = 32, 128
    base = TrainOptions(steps=1, warmup=0, batch=rows, length=length, checkpoint_every=100)

    def stage(**fields):
        return dataclasses.replace(base, **fields)

    return Study(
        name='expert_count_cpu_small',
        description='Small SMoE language models on two CPU cores: is it better to pretrain few '
        'experts, or many and shrink?',
        model=cpu_small(),
        experts=(4, 8, 16, 32),
        pairs=((8, 4), (16, 8), (16, 4), (32, 16), (32, 8), (32, 4)),
        main=UNCURL,
        rivals=RIVALS,
        rival_pairs=((32, 8),),
        tasks=('lm-code', 'lm-drama', 'sst2', 'boolq'),
        pretrain=stage(steps=350, peak_lr=4e-3, warmup=40),
        recovery=Recovery(
            warm=stage(steps=10, batch=16, peak_lr=1e-2, warmup=2),
            prefinetune=stage(steps=20, batch=16, peak_lr=1e-3, warmup=2),
            finetune=stage(steps=30, batch=16, peak_lr=1e-3, warmup=3),
        ),
    )


def smoke() -> Study:
    full = config()

    def short(options, steps):
        return dataclasses.replace(options, steps=steps, warmup=1, batch=8)

    recovery = dataclasses.replace(
        full.recovery,
        warm=short(full.recovery.warm, 2),
        prefinetune=short(full.recovery.prefinetune, 2),
        finetune=short(full.recovery.finetune, 3),
    )
    return full.replace(
        name='expert_count_smoke', model=tiny(), experts=(2, 4), pairs=((4, 2),),
        rivals=RIVALS[:1], rival_pairs=((4, 2),), tasks=('lm-code', 'domain_id'),
        pretrain=short(full.pretrain, 20), recovery=recovery, corpus_characters=400_000,
        task_limit=64, observe_tokens=2048, heldout_tokens=2048, score_rows=8,
    )
