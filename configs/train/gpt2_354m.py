"""The UNCURL paper's backbone, 24 layers of width 1024, with 8 to 128 experts; 40B tokens.

    moe-jax train configs/train/gpt2_354m.py --plan-only
    moe-jax train configs/train/gpt2_354m.py --variant experts_128 --plan-only --peak h100
    moe-jax train configs/train/gpt2_354m.py --variant experts_128 --plan-only --peak v5p \
        --mesh data=8,expert=8 --batch 64
    moe-jax train configs/train/gpt2_354m.py --variant experts_128 --data DIR  # DIR/<domain>/*.txt

`config` has 8 experts and one device; the others lie on eight, an eighth of the experts on each.
None of them has been run in full; --plan-only says what they take. The paper's corpus (CC100 and
mC4, English) is yours to bring with --data.
"""

from moe_jax.config.presets import gpt2_354m
from train import Run, TrainOptions

ROWS = 512  # of a step


def config() -> Run:
    return of(8, batch=4, mesh={})


def experts_32() -> Run:
    return of(32, batch=16, mesh={'expert': 8})


def experts_64() -> Run:
    return of(64, batch=16, mesh={'expert': 8})


def experts_128() -> Run:
    return of(128, batch=16, mesh={'expert': 8})


def of(experts: int, batch: int, mesh: dict[str, int]) -> Run:
    """The run with so many experts: `batch` rows at a time, on a mesh."""
    return Run(
        name=f'gpt2_354m_{experts}',
        description=f'The 354M backbone of the UNCURL paper with {experts} experts.',
        model=gpt2_354m(experts),
        options=TrainOptions(steps=76_294, batch=batch, accumulate=ROWS // batch, length=1024,
                             evaluate_every=1000, checkpoint_every=500),
        mesh=mesh,
        corpus_characters=200_000_000_000,
        heldout_tokens=1_000_000,
    )
