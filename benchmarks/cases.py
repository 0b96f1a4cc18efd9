"""Which benchmarks there are."""

from typing import NamedTuple

EVERYWHERE = ('cpu', 'gpu', 'tpu')


class Case(NamedTuple):
    """A benchmark: a function of a module here that yields (settings, what was measured)."""

    module: str
    function: str
    about: str
    peer: str
    backends: tuple[str, ...] = ('cpu',)


CASES = {
    'layer': Case('layer', 'run', 'one MoE layer, forward and with gradients',
                  'dense products of the same FLOPs; torch grouped_mm and a loop over experts'),
    'scoring': Case('scoring', 'run', 'log-probabilities of all or the last tokens',
                    'transformers, eager and grouped experts'),
    'options': Case('options', 'run', 'options of questions, as the evaluation harness asks',
                    "the harness's own wrapper of transformers"),
    'training': Case('training', 'run', 'a training step', 'torch, grouped_mm and per expert'),
    'observe': Case('observing', 'run', 'statistics of a calibration pass',
                    'a scoring pass; every expert on every token'),
    'search': Case('search', 'run', 'the search over all sets of experts',
                   'running the layer for each set'),
    'scores': Case('scores', 'run', 'ranking the experts of a large model from statistics', ''),
    'uncurl': Case('uncurl', 'run', 'clustering and alignment of a large layer', ''),
    'loading': Case('loading', 'run', 'opening, loading and exporting checkpoints',
                    'transformers'),
    'growth': Case('growth', 'run', 'time by experts, tokens, layers and top-k', 'torch'),
    'gpu-layer': Case('gpu_layer', 'layers', 'one MoE layer in bfloat16',
                      'dense products of the same FLOPs; torch grouped_mm', ('gpu',)),
    'gpu-check': Case('gpu_layer', 'check', 'errors of the grouped matrix products', 'numpy',
                      ('gpu',)),
    'gpu-latency': Case('gpu_layer', 'latencies', 'a forward pass by number of experts', '',
                        ('gpu',)),
}
