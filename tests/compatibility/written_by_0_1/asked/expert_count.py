"""A study of expert counts that takes seconds, as a user of version 0.1 wrote it."""

from moe_jax.config import Config
from moe_jax.study.spec import Method, Recovery, Study
from train import TrainOptions


def stage(steps: int, rate: float) -> TrainOptions:
    return TrainOptions(steps=steps, batch=4, length=32, peak_lr=rate, warmup=1, log_every=4)


def config() -> Study:
    return Study(
        name='expert_count', description='Four experts, shrunk to two.',
        model=Config(vocab=280, positions=32, width=16, heads=2, mlp_hidden=24, expert_hidden=24,
                     experts=(4,)),
        experts=(2, 4), pairs=((4, 2),), main=Method(label='uncurl', name='uncurl'),
        rivals=(Method(label='merged', name='m_smoe', options=(('selection', 'per_layer'),)),),
        rival_pairs=((4, 2),), tasks=('lm-harbour', 'quiz'), pretrain=stage(12, 1e-2),
        recovery=Recovery(warm=stage(2, 1e-2), prefinetune=stage(2, 3e-3),
                          finetune=stage(2, 3e-3)),
        corpus_characters=12_000, task_limit=16, observe_tokens=256, heldout_tokens=256,
        score_rows=4, parallel=(1,),
    )
