"""The table of methods. A new one is a file here with PAPER, KIND, NEEDS and `plan`, and a row."""

from types import MappingProxyType, ModuleType

from prune.methods import frequency, frequency_merge, m_smoe, random_keep, uncurl

METHODS: MappingProxyType[str, ModuleType] = MappingProxyType({
    'uncurl': uncurl,
    'frequency': frequency,
    'frequency_merge': frequency_merge,
    'm_smoe': m_smoe,
    'random': random_keep,
})
