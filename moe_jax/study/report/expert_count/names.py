"""The spelling of models, methods and numbers in every table, sentence and figure."""

from collections.abc import Sequence

from moe_jax.base.text import listed
from moe_jax.study.report.expert_count.values import SCRATCH, Model
from moe_jax.study.report.paired import Estimate

MISSING = '–'
# The titles of method names in the records of docs/results, which no rule could derive. New records
# have titles: a method without a label in its study is recorded by its title.
RECORDED = {
    'aimer': 'AIMER',
    'ean': 'EAN',
    'expert_drop': 'Expert Drop',
    'frequency_merge': 'frequency merging',
    'hc_smoe': 'HC-SMoE',
    'm_smoe': 'M-SMoE',
    'man': 'MAN',
    'mone': 'MoNE',
    'naee': 'NAEE',
    'ream': 'REAM',
    'reap': 'REAP',
    'router_norm': 'router norm',
    'seer': 'SEER-MoE',
    'stun': 'STUN',
    'sub_moe': 'Sub-MoE',
    'uncurl': 'UNCURL',
}
STAGES = {
    'shrunk': 'just shrunk',
    'warmed': 'routers warmed',
    'prefinetuned': 'pre-fine-tuned',
    'finetuned': 'fine-tuned',
}
STATUS = {'better': 'better', 'worse': 'worse', 'noise': 'within noise'}
SIGNS = {'better': '+', 'worse': '-', 'noise': '='}


def method(name: str) -> str:
    """The words for a method as records name it."""
    return RECORDED.get(name, name)


def model(value: Model) -> str:
    """'scratch 8' or 'UNCURL 32->8'."""
    if value.method == SCRATCH:
        return f'scratch {value.experts}'
    return f'{method(value.method)} {arrow(value)}'


def arrow(value: Model) -> str:
    return f'{value.experts}->{value.keep}'


def headline(methods: Sequence[str]) -> str | None:
    """The method a verdict is about: the first of the study."""
    return methods[0] if methods else None


def signed(value: float) -> str:
    return f'{value:+.3f}'


def interval(estimate: Estimate) -> str:
    return f'[{signed(estimate.low)}, {signed(estimate.high)}]'


def difference(estimate: Estimate) -> str:
    return f'{signed(estimate.value)} {interval(estimate)}'


def ratio(value: float) -> str:
    """A pruning factor: '4', '2.4'."""
    return f'{value:.1f}'.removesuffix('.0')


def tally(statuses: Sequence[str]) -> str:
    """'better in 1, worse in 2 and within noise in 3'."""
    return listed(f'{STATUS[s]} in {statuses.count(s)}' for s in STATUS if s in statuses)


def counted(number: int, noun: str) -> str:
    """'1 seed', '3 seeds'."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def millions(count: int | None) -> str:
    """'5.24M', or a dash."""
    return MISSING if count is None else f'{count / 1e6:.2f}M'
