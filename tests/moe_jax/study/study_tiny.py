"""A study that a test can afford, on sentences made here; also a config file for `moe-jax study`.

Two domains differ in their words and their order, so that experts have something to tell apart.
"""

import json
import random
from pathlib import Path

from moe_jax.config import Config
from moe_jax.study.expert_count.spec import Method, Recovery, Study
from train import TrainOptions

DOMAINS = {
    'harbour': ('the {} {} {} past the {}.\n', (
        ('grey', 'small', 'slow', 'late'), ('ferry', 'tug', 'barge', 'pilot'),
        ('drifts', 'turns', 'hoots', 'waits'), ('pier', 'buoy', 'crane', 'light'))),
    'ledger': ('{}: {} crates of {} at {}\n', (
        ('paid', 'owed', 'sent', 'lost'), ('two', 'nine', 'forty', 'twelve'),
        ('rope', 'tar', 'salt', 'oil'), ('noon', 'dawn', 'dusk', 'once'))),
}
FILES, LINES = 12, 24
QUIZ = {'train': 16, 'validation': 8}


def write_texts(folder: Path) -> Path:
    """DIR/<domain>/<n>.txt and the files of the task `quiz`, always the same."""
    rng = random.Random(0)
    for domain, (sentence, words) in DOMAINS.items():
        (folder / domain).mkdir(parents=True)
        for number in range(FILES):
            lines = [sentence.format(*map(rng.choice, words)) for _ in range(LINES)]
            (folder / domain / f'{number}.txt').write_text(''.join(lines))
    (folder / 'quiz').mkdir()
    for part, count in QUIZ.items():
        rows = [{'context': f'{rng.choice(("rope", "tar"))} is sent, tug {number}, paid at',
                 'choices': ['noon', 'dawn'], 'label': rng.randrange(2)} for number in range(count)]
        (folder / 'quiz' / f'{part}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return folder


def config() -> Study:
    def stage(steps: int, lr: float) -> TrainOptions:
        return TrainOptions(steps=steps, batch=4, length=32, peak_lr=lr, warmup=1, log_every=4,
                            checkpoint_every=4)

    return Study(
        name='tiny', description='A study for tests.',
        model=Config(vocab=300, positions=32, width=16, heads=2, mlp_hidden=24, expert_hidden=24,
                     experts=(4,)),
        experts=(2, 4), pairs=((4, 2),), main=Method(label='uncurl', name='uncurl'),
        rivals=(Method(label='frequency', name='frequency'),), rival_pairs=((4, 2),),
        tasks=('lm-harbour', 'quiz'), pretrain=stage(24, 1e-2),
        recovery=Recovery(warm=stage(2, 1e-2), prefinetune=stage(2, 3e-3),
                          finetune=stage(3, 3e-3)),
        corpus_characters=12_000, task_limit=16, observe_tokens=256, heldout_tokens=256,
        score_rows=4,
        parallel=(1,),
    )
