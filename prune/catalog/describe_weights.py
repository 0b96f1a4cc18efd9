"""The section of docs/methods.md on weights inside experts, made of docstrings and tables."""

import inspect

from prune.catalog.docstrings import code_list, markdown_table, options_text, prose, reads
from prune.plans.masks import LEAVES
from prune.weights import cut, registry, stack
from prune.weights.layerwise import sparsify_layerwise
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


def weight_section(name: str) -> str:
    """One criterion: its docstring, options and their defaults, and what it reads."""
    module, form = registry.weight_method(name), registry.form(name)
    given = options_text(registry.function(name), registry.weight_options(name))
    facts = '\n'.join(f'- {line}' for line in _facts(name))
    return (f'### {name}\n\n{prose(module.__doc__)}\n\n**{FORM[form].capitalize()}.** {given}\n\n'
            f'**Needs and takes.**\n\n{facts}\n')


def weight_markdown() -> str:
    """The whole section."""
    rows = [(f'[{row.name}](#{row.name})', row.scope, row.cost, ', '.join(row.needs) or '–',
             row.paper) for row in registry.weight_methods()]
    names = [p.name for p in inspect.signature(sparsify).parameters.values()
             if p.kind is p.KEYWORD_ONLY]
    return '\n'.join([
        HEAD + markdown_table(COLUMNS, rows), prose(sparsify.__doc__, names) + '\n',
        prose(sparsify_layerwise.__doc__) + '\n', prose(stack.blended.__doc__) + '\n',
        *(weight_section(row.name) for row in registry.weight_methods())])


def _facts(name: str) -> list[str]:
    module, chosen = registry.weight_method(name), registry.weight_options(name)
    needs = registry.weight_needs(name, chosen)
    facts = [f'Paper: {module.PAPER}. Cost: {module.COST}.',
             f'Reads {code_list(needs) if needs else "no statistics"}.']
    for key, values in getattr(module, 'OPTION_NEEDS', {}).items():
        for value in values:
            more = registry.weight_needs(name, chosen | {key: value})
            facts.append(f'`{key}={value!r}` also{reads([n for n in more if n not in needs])}.')
    asked = registry.weight_observe_options(name)
    call = ', '.join(f'{key}={value!r}' for key, value in asked.items())
    if needs:
        facts.append(f'Observe with `{call}`.' if call else 'Observe with the default options.')
    solves = registry.form(name) == 'solve'
    scopes = ['output'] if solves else list(cut.Scope.__args__)
    facts.append(f'Scopes: {code_list(scopes)}, by default `{module.SCOPE}`; or a pattern. Leaves: '
                 f'{code_list(LEAVES)}.')
    return facts
