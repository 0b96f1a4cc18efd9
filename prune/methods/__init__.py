"""The table of methods. A new one is a file here and a row.

A file has PAPER, KIND ('drop' or 'merge'), NEEDS (statistics read under the default options), COST
and one function: `scores` ranks experts, `choose` searches the set to keep, `plan` merges. Its
docstring is published in docs/methods.md.
"""

from types import MappingProxyType, ModuleType

from prune.methods import (
    aimer,
    ean,
    expert_drop,
    expert_norm,
    frequency,
    frequency_merge,
    gated_ean,
    m_smoe,
    man,
    mone,
    msan,
    nllb,
    random_keep,
    reap,
    router_change,
    router_norm,
    seer,
    uncurl,
)

METHODS: MappingProxyType[str, ModuleType] = MappingProxyType({
    'frequency': frequency,
    'seer': seer,
    'expert_drop': expert_drop,
    'ean': ean,
    'gated_ean': gated_ean,
    'reap': reap,
    'man': man,
    'msan': msan,
    'mone': mone,
    'nllb': nllb,
    'aimer': aimer,
    'expert_norm': expert_norm,
    'router_norm': router_norm,
    'router_change': router_change,
    'random': random_keep,
    'uncurl': uncurl,
    'frequency_merge': frequency_merge,
    'm_smoe': m_smoe,
})
