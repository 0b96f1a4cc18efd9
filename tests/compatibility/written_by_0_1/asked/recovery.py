"""A recovery study that takes seconds, as a user of version 0.1 wrote it."""

from moe_jax.config import Config
from moe_jax.study.recovery.spec import Drop, Recipe, RecoveryStudy, Sparsify
from train import TRAINABLE, Distill, Trainable, TrainOptions


def stage(steps: int) -> TrainOptions:
    return TrainOptions(steps=steps, batch=4, length=32, peak_lr=1e-2, warmup=1, log_every=4,
                        weight_decay=0.0)


def config() -> RecoveryStudy:
    return RecoveryStudy(
        name='recovery', description='Half the experts dropped, or half their weights zeroed.',
        model=Config(vocab=280, positions=32, width=16, heads=2, mlp_hidden=24, expert_hidden=24,
                     experts=(4,)),
        experts=4,
        shrinks=(Drop(label='half', name='frequency', experts=2),
                 Sparsify(label='sparse', name='wanda', sparsity=0.5)),
        recipes=(Recipe(label='plain'),
                 Recipe(label='routers', trains=TRAINABLE['routers'],
                        distill=Distill(ce=0.0, logits=1.0)),
                 Recipe(label='adapters', trains=Trainable(rank=2, on='attn/')),
                 Recipe(label='some', select=0.4)),
        ceiling='plain', tasks=('lm-harbour',), pretrain=stage(12), recover=stage(2),
        rates=(1e-3, 1e-2), tuning_rows=4, corpus_characters=12_000, task_limit=16,
        observe_tokens=256, heldout_tokens=256, score_rows=4,
    )
