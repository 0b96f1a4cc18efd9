"""The UNCURL paper's study: 354M backbone, 8 to 128 experts, 40B tokens, six SuperGLUE tasks.

    moe-jax study configs/expert_count/paper.py --cost             # prints the cost and stops
    moe-jax study configs/expert_count/paper.py --data DIR         # DIR/<domain>/*.txt: your corpus

About 4e20 FLOPs a seed, weeks on one GPU; the cost is printed before anything starts. The training
state of 128 experts is 210 GB, more than one GPU holds, and this library does not shard it yet. The
paper's corpus (CC100 and mC4, English) is yours to bring with --data; the tasks come from the hub,
ReCoRD and WSC among them. Deviations: the tokenizer is a byte-level BPE of GPT-2's size trained on
the corpus; fine-tuning takes equal steps on every task where the paper takes 50 epochs.
"""

import dataclasses

from moe_jax.config.presets import gpt2_354m
from moe_jax.study.expert_count.spec import Method, Recovery, Study
from train import TrainOptions

ROWS, MICRO = 512, 4  # rows a step, and of them at a time on the device


def config() -> Study:
    pretrain = TrainOptions(
        # 40B tokens, as the text says; the appendix says 30B in one place and 50B in another.
        steps=76_294, batch=MICRO, length=1024, accumulate=ROWS // MICRO, checkpoint_every=500
    )
    tune = dataclasses.replace(
        # Rows of 256 tokens, as the text says; the table of settings says 128.
        pretrain, steps=5000, batch=16, length=256, accumulate=4, peak_lr=1e-6, warmup=500,
        weight_decay=0.001,
    )
    return Study(
        name='expert_count_paper',
        description='The study of the UNCURL paper at its own size.',
        model=gpt2_354m(),
        experts=(8, 32, 64, 128),
        pairs=((32, 8), (64, 8), (64, 32), (128, 8), (128, 32), (128, 64)),
        main=Method(label='uncurl', name='uncurl'),
        rivals=(
            Method(label='frequency', name='frequency'),
            Method(label='frequency_merge', name='frequency_merge'),
            Method(label='m_smoe', name='m_smoe'),
        ),
        rival_pairs=((32, 8), (64, 32), (128, 64)),
        tasks=('hub/rte', 'hub/boolq', 'hub/copa', 'hub/cb', 'hub/record', 'hub/wsc'),
        pretrain=pretrain,
        recovery=Recovery(
            warm=dataclasses.replace(tune, steps=200, peak_lr=5e-5, warmup=20),
            prefinetune=dataclasses.replace(tune, steps=5000, peak_lr=5e-5),
            finetune=tune,
        ),
        capacity=1.0,
        corpus_characters=200_000_000_000,
        task_limit=100_000,
        observe_tokens=1_000_000,
        heldout_tokens=1_000_000,
    )
