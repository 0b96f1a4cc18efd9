"""Sixteen ways to shrink one small SMoE, side by side: 16 experts to 8 and to 4, per task.

    moe-jax study configs/methods/cpu_small.py --seeds 2       # what docs/results holds
    moe-jax study configs/methods/cpu_small.py --smoke         # a minute, to try it out

Models, corpus, tasks and recovery are those of configs/expert_count/cpu_small.py, so the question
here is only which experts a method keeps or merges. Scores are taken right after shrinking and
after every stage of recovery: methods differ most before any training.
"""

from pathlib import Path

from moe_jax.study.expert_count import spec
from moe_jax.study.expert_count.spec import Method, Study

EXPERT_COUNT = spec.load(Path(__file__).parents[1] / 'expert_count' / 'cpu_small.py')
DROP = ('frequency', 'seer', 'expert_drop', 'ean', 'reap', 'man', 'aimer', 'router_norm', 'stun',
        'naee', 'mone', 'random')
MERGE = ('m_smoe', 'hc_smoe', 'ream', 'sub_moe')


def config() -> Study:
    return EXPERT_COUNT.replace(
        name='methods_cpu_small',
        description='One small SMoE language model on two CPU cores, shrunk by many methods: which '
        'experts to keep or merge?',
        experts=(4, 8, 16),
        pairs=((16, 8), (16, 4)),
        rivals=tuple(Method(label=name, name=name) for name in (*DROP, *MERGE)),
        rival_pairs=((16, 8), (16, 4)),
        observe_tokens=8192,
    )


def smoke() -> Study:
    small = spec.load(Path(__file__).parents[1] / 'expert_count' / 'cpu_small.py', 'smoke')
    return small.replace(
        name='methods_smoke', rivals=tuple(Method(label=n, name=n) for n in ('reap', 'hc_smoe')))
