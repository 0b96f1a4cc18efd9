"""A recovery study that a test can afford; also a config file for `moe-jax study`."""

from moe_jax.study.recovery.spec import Drop, Recipe, RecoveryStudy, Sparsify
from tests.moe_jax.study import study_tiny
from train import TRAINABLE, Distill, TrainOptions

RECIPES = (
    Recipe(label='plain'),
    Recipe(label='routers', trains=TRAINABLE['routers'], distill=Distill(ce=0.0, logits=1.0)),
    Recipe(label='some', select=0.4),
)


def config() -> RecoveryStudy:
    def stage(steps: int, lr: float) -> TrainOptions:
        return TrainOptions(steps=steps, batch=4, length=32, peak_lr=lr, warmup=1, log_every=4,
                            checkpoint_every=0, weight_decay=0.0)

    return RecoveryStudy(
        name='tiny recovery', description='A recovery study for tests.',
        model=study_tiny.config().model, experts=4,
        shrinks=(Drop(label='half', name='frequency', experts=2),
                 Sparsify(label='sparse', name='wanda', sparsity=0.5)),
        recipes=RECIPES, ceiling='plain', tasks=('lm-harbour',), pretrain=stage(24, 1e-2),
        recover=stage(3, 1.0), rates=(1e-9, 1e-2), tuning_rows=8, corpus_characters=12_000,
        task_limit=16, observe_tokens=256, heldout_tokens=256, score_rows=4,
    )
