"""A shrunk model that learns from the one it was made of, as a user of version 0.1 wrote it."""

from train import Distill, Run, TrainOptions


def config() -> Run:
    return Run(
        name='distill', start='hf/native', teacher='hf/source',
        recipe=Distill(logits=1.0, experts='balance'),
        options=TrainOptions(steps=8, batch=4, length=24, peak_lr=1e-2, warmup=2, log_every=1,
                             checkpoint_every=4, evaluate_every=4, trainable='moe/'),
        domains={'harbour': 2.0, 'ledger': 1.0}, corpus_characters=12_000, heldout_tokens=256,
        score_rows=4,
    )
