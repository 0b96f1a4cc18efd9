"""The paper's question on two CPU cores: pretrain 2, 4, 8 and 16 experts, shrink, compare.

    moe-jax study configs/expert_count/cpu_small.py            # 14 minutes on two cores
    moe-jax study configs/expert_count/cpu_small.py --smoke    # under 2 minutes, for CI
    moe-jax study configs/expert_count/cpu_small.py --seeds 3  # what docs/results holds

Expect: held-out loss of 3.8 to 4.1 nats per token by domain after pretraining, and shrunk models
0.02 to 0.04 nats below the from-scratch model of their size (docs/results/expert_count_cpu_small).
"""

import dataclasses

from moe_jax.config.presets import cpu_small, tiny
from moe_jax.study.expert_count.spec import Method, Recovery, Study
from train import TrainOptions

UNCURL = Method(label='uncurl', name='uncurl')
RIVALS = (
    Method(
        label='UNCURL + reference router', name='uncurl',
        options=(('router_init', 'reference'),),
    ),
    Method(label='frequency', name='frequency'),
    Method(label='frequency_merge', name='frequency_merge'),
    Method(
        label='m_smoe', name='m_smoe',
        options=(('selection', 'per_layer'), ('router_init', 'reference')),
    ),
    Method(label='random', name='random'),
)


def config() -> Study:
    base = TrainOptions(steps=1, warmup=0, batch=8, length=128, checkpoint_every=1000)

    def stage(**fields):
        return dataclasses.replace(base, **fields)

    return Study(
        name='expert_count_cpu_small',
        description='Small SMoE language models on two CPU cores: is it better to pretrain few '
        'experts, or many and shrink?',
        # The paper's balance of 0.01 let routing collapse at this learning rate.
        model=cpu_small().replace(balance=0.03, zloss=0.001),
        experts=(2, 4, 8, 16),
        pairs=((4, 2), (8, 4), (8, 2), (16, 8), (16, 4), (16, 2)),
        main=UNCURL,
        rivals=RIVALS,
        rival_pairs=((16, 4),),
        tasks=('lm-code', 'lm-drama', 'sst2', 'boolq'),
        pretrain=stage(steps=5000, peak_lr=6e-3, warmup=100),
        recovery=Recovery(
            warm=stage(steps=40, peak_lr=1e-2, warmup=4),
            prefinetune=stage(steps=30, peak_lr=5e-4, warmup=4),
            finetune=stage(steps=120, peak_lr=1e-3, warmup=10),
        ),
        validation_limit=240,
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
        rivals=RIVALS[1:2], rival_pairs=((4, 2),), tasks=('lm-code', 'domain_id'),
        pretrain=short(full.pretrain, 20), recovery=recovery, corpus_characters=400_000,
        task_limit=64, observe_tokens=2048, heldout_tokens=2048, score_rows=8,
        parallel=(1, 2),
    )
