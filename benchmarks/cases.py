"""Which benchmarks there are."""

from typing import NamedTuple

EVERYWHERE = ('cpu', 'gpu', 'tpu')


class Case(NamedTuple):
    """A benchmark: a function of a module here that yields (settings, what was measured).

    experts: whether it evaluates experts of ours, so that its settings say how that is done.
    """

    module: str
    function: str
    about: str
    peer: str
    backends: tuple[str, ...] = ('cpu',)
    experts: bool = False


CASES = {
    'layer': Case('layer', 'run', 'one MoE layer, forward and with gradients',
                  'dense products of the same FLOPs; torch grouped_mm and a loop over experts',
                  experts=True),
    'scoring': Case('scoring', 'run', 'log-probabilities of all or the last tokens',
                    'transformers, eager and grouped experts', experts=True),
    'options': Case('options', 'run', 'options of questions, as the evaluation harness asks',
                    "the harness's own wrapper of transformers", experts=True),
    'training': Case('training', 'run', 'a training step', 'torch, grouped_mm and per expert',
                     experts=True),
    'observe': Case('observing', 'run', 'statistics of a calibration pass',
                    'a scoring pass; every expert on every token', experts=True),
    'search': Case('search', 'run', 'the search over all sets of experts',
                   'running the layer for each set'),
    'scores': Case('scores', 'run', 'ranking the experts of a large model from statistics', ''),
    'uncurl': Case('uncurl', 'run', 'clustering and alignment of a large layer', ''),
    'loading': Case('loading', 'run', 'opening, loading and exporting checkpoints',
                    'transformers'),
    'growth': Case('growth', 'run', 'time by experts, tokens, layers and top-k', 'torch',
                   experts=True),
    'gpu-layer': Case('gpu_layer', 'layers', 'one MoE layer in bfloat16',
                      'dense products of the same FLOPs; torch grouped_mm', ('gpu',)),
    'gpu-check': Case('gpu_layer', 'check', 'errors of the grouped matrix products', 'numpy',
                      ('gpu',)),
    'gpu-latency': Case('gpu_layer', 'latencies', 'a forward pass by number of experts', '',
                        ('gpu',)),
}
