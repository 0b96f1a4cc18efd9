"""What each recovery recipe wins back: 16 experts, half of them dropped or half the weights zeroed.

    moe-jax study configs/recovery/cpu_small.py --seeds 3      # what docs/results holds
    moe-jax study configs/recovery/cpu_small.py --smoke        # in miniature, to try it out

Three seeds took 37 minutes on one core of two that other programs kept busy; the last of them
alone, its rates known and most programs compiled, 7 minutes. Expect held-out losses of 4.0 to 4.3
nats per token after pretraining; 0.063 nats lost to dropping and 0.020 to zeroing; and of these
120% and 214% won back by fine-tuning, 17% and 14% by router distillation
(docs/results/recovery_cpu_small).
"""

import dataclasses

from moe_jax.config.presets import cpu_small, tiny
from moe_jax.study.recovery.spec import Drop, Recipe, RecoveryStudy, Sparsify
from train import TRAINABLE, Distill, Trainable, TrainOptions

# The three that learn from the teacher alone leave the routers' auxiliary losses out as well.
RECIPES = (
    Recipe(label='fine-tuning'),
    Recipe(label='router distillation', trains=TRAINABLE['routers'],
           distill=Distill(ce=0.0, logits=1.0, auxiliary=0.0)),
    Recipe(label='logits distillation', distill=Distill(ce=0.0, logits=1.0, auxiliary=0.0)),
    Recipe(label='hidden-state distillation', distill=Distill(ce=0.0, hidden=1.0, auxiliary=0.0)),
    Recipe(label='expert-wise distillation', distill=Distill(ce=1.0, experts='balance')),
    Recipe(label='selected experts', select=0.5),
    Recipe(label='low-rank adapters', trains=Trainable(rank=4, on='attn/|mlp/|moe/experts/')),
)


def config() -> RecoveryStudy:
    base = TrainOptions(steps=1, warmup=0, batch=8, length=128, checkpoint_every=1000)
    return RecoveryStudy(
        name='recovery_cpu_small',
        description='A small SMoE language model on one CPU core, with half of its experts dropped '
        'or half of the weights inside them set to zero: what does each way of training win back?',
        model=cpu_small().replace(balance=0.03, zloss=0.001),
        experts=16,
        shrinks=(
            Drop(label='16 to 8 experts', name='frequency', experts=8),
            # One of every two consecutive inputs stays: any half of them cost too little to tell
            # recipes apart.
            Sparsify(label='half the weights', name='moe_pruner', sparsity=0.5, pattern=(1, 2)),
        ),
        recipes=RECIPES,
        ceiling='fine-tuning',
        tasks=('lm-code', 'lm-drama'),
        pretrain=dataclasses.replace(base, steps=2000, peak_lr=6e-3, warmup=100),
        # No weight decay: a recipe that gives a matrix no gradient must not shrink it either.
        recover=dataclasses.replace(base, steps=60, warmup=6, weight_decay=0.0),
        rates=(5e-4, 2e-3, 8e-3, 3.2e-2),
        tuning_rows=64,
    )


def smoke() -> RecoveryStudy:
    full = config()
    return full.replace(
        name='recovery_smoke', model=tiny(), experts=4, recipes=(*RECIPES[:2], RECIPES[5]),
        shrinks=(Drop(label='4 to 2 experts', name='frequency', experts=2), full.shrinks[1]),
        tasks=('lm-code',), rates=(1e-3, 1e-2), tuning_rows=8, corpus_characters=400_000,
        pretrain=dataclasses.replace(full.pretrain, steps=20, warmup=1),
        recover=dataclasses.replace(full.recover, steps=3, warmup=1),
        task_limit=64, observe_tokens=2048, heldout_tokens=2048, score_rows=8,
    )
