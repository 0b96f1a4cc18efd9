"""The section of docs/methods.md on weights inside experts, made of docstrings and tables."""

import inspect
import typing

from prune.catalog.docstrings import (
    code_list,
    markdown_table,
    observing,
    options_text,
    prose,
    reads,
)
from prune.inputs.method import Method, Scope
from prune.plans.masks import LEAVES
from prune.weights import stack
from prune.weights.layerwise import sparsify_layerwise
from prune.weights.methods import WEIGHT_METHODS
from prune.weights.sparsify import sparsify

COLUMNS = ('name', 'scope', 'cost', 'needs', 'paper')
FORM = {'scores': 'ranks weights', 'solve': 'masks and updates weights'}
HEAD = """## Weights inside experts

Criteria for single weights of the routed experts' matrices, as plans of masks: experts and routers
stay, and a share of the weights becomes exactly zero. Zeros take as much memory and time as other
numbers until a format or a kernel for sparse matrices uses them; a pattern such as 2:4 is what some
accelerators have one for.

```sh
moe-jax sparsify MODEL --method wanda --sparsity 0.5 --stats stats.npz --out SPARSE
moe-jax sparsify MODEL --method moe_pruner --pattern 2:4 --layerwise --tasks boolq --out SPARSE
```

```python
plan = prune.sparsify('wanda', stats, params, cfg, sparsity=0.5)
sparse, _ = prune.apply(params, cfg, plan)
prune.sparsity(sparse)                                 # {layer: {'up': 0.5, ...}}
found = prune.sparsify_layerwise('sparsegpt', params, cfg, batches, pattern=(2, 4))
both = expert_plan.then(prune.sparsify('wanda', stats_of_small, small, small_cfg))
```

`then` makes one plan of an expert plan and the masks of what it leaves, as STUN does; masks go
along with the experts that a later plan keeps, and cannot come before a merge.

"""


def weight_section(method: Method) -> str:
    """One criterion: its docstring, options and their defaults, and what it reads."""
    options = options_text(method.function, method.options)
    facts = '\n'.join(f'- {line}' for line in _facts(method))
    return (f'### {method.name}\n\n{prose(method.doc)}\n\n'
            f'**{FORM[method.form].capitalize()}.** {options}\n\n'
            f'**Needs and takes.**\n\n{facts}\n')


def weight_markdown() -> str:
    """The whole section."""
    rows = [(f'[{m.name}](#{m.name})', m.scope or '', m.cost.value,
             ', '.join(m.reads(m.options)) or '–', m.paper) for m in WEIGHT_METHODS.values()]
    names = [p.name for p in inspect.signature(sparsify).parameters.values()
             if p.kind is p.KEYWORD_ONLY]
    return '\n'.join([
        HEAD + markdown_table(COLUMNS, rows), prose(sparsify.__doc__, names) + '\n',
        prose(sparsify_layerwise.__doc__) + '\n', prose(stack.blended.__doc__) + '\n',
        *(weight_section(method) for method in WEIGHT_METHODS.values())])


def _facts(method: Method) -> list[str]:
    needs = method.reads(method.options)
    facts = [f'Paper: {method.paper}. Cost: {method.cost}.',
             f'Reads {code_list(needs) if needs else "no statistics"}.']
    for key, values in method.option_needs.items():
        for value in values:
            more = method.reads(method.options | {key: value})
            facts.append(f'`{key}={value!r}` also{reads([n for n in more if n not in needs])}.')
    facts += observing(method)
    scopes = ['output'] if method.form == 'solve' else typing.get_args(Scope)
    facts.append(f'Scopes: {code_list(scopes)}, by default `{method.scope}`; or a pattern. Leaves: '
                 f'{code_list(LEAVES)}.')
    return facts
