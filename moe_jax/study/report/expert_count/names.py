"""How models, methods and numbers are written in every table, sentence and figure."""

from collections.abc import Sequence

from moe_jax.base.text import listed
from moe_jax.study.report.expert_count.values import SCRATCH, Model
from moe_jax.study.report.paired import Estimate

MISSING = '–'
METHODS = {
    'aimer': 'AIMER',
    'diep': 'DiEP',
    'diversify': 'diversifying',
    'ean': 'EAN',
    'eep': 'EEP',
    'expert_drop': 'Expert Drop',
    'expert_norm': 'expert norm',
    'frequency': 'frequency',
    'frequency_merge': 'frequency merging',
    'gated_ean': 'gated EAN',
    'genetic': 'genetic search',
    'greedy': 'greedy elimination',
    'hc_smoe': 'HC-SMoE',
    'm_smoe': 'M-SMoE',
    'man': 'MAN',
    'mone': 'MoNE',
    'msan': 'MSAN',
    'naee': 'NAEE',
    'nllb': 'NLLB-200',
    'random': 'random',
    'ream': 'REAM',
    'reap': 'REAP',
    'router_change': 'router norm change',
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
    return METHODS.get(name, name)


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
