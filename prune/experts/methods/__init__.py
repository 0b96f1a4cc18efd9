"""The table of methods. A new one is a file here and a row.

A file has PAPER, KIND ('drop' or 'merge'), NEEDS (statistics read under the default options), COST
and one function: `scores` ranks experts, `choose` searches the set to keep, `plan` merges. Its
docstring is published in docs/methods.md.
"""

from types import MappingProxyType, ModuleType

from prune.experts.methods import (
    aimer,
    diep,
    diversify,
    ean,
    eep,
    expert_drop,
    expert_norm,
    frequency,
    frequency_merge,
    gated_ean,
    genetic,
    greedy,
    hc_smoe,
    m_smoe,
    man,
    mone,
    msan,
    naee,
    nllb,
    random_keep,
    ream,
    reap,
    router_change,
    router_norm,
    seer,
    stun,
    sub_moe,
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
    'naee': naee,
    'greedy': greedy,
    'genetic': genetic,
    'diep': diep,
    'stun': stun,
    'random': random_keep,
    'uncurl': uncurl,
    'frequency_merge': frequency_merge,
    'm_smoe': m_smoe,
    'hc_smoe': hc_smoe,
    'ream': ream,
    'sub_moe': sub_moe,
    'diversify': diversify,
    'eep': eep,
})
