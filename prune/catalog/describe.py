"""The page of methods, made of their docstrings and tables; docs/methods.md is what it gives.

    python -c 'from prune.catalog import describe; print(describe.markdown(), end="")'
"""

import inspect
import typing
from collections.abc import Collection

import numpy as np
from rich import box
from rich.table import Table

from moe_jax.config import Config
from moe_jax.routing.gates import GATE
from prune.budget import budget, spread
from prune.catalog import registry
from prune.catalog.describe_weights import weight_markdown, weight_section
from prune.catalog.docstrings import (
    code_list,
    fields_text,
    markdown_table,
    observing,
    one_line,
    options_text,
    prose,
    reads,
)
from prune.experts import keep, planner, protect, request, routers
from prune.inputs.method import Method, Replace
from prune.inputs.statistics import option
from prune.similarity.cluster import similarity

COLUMNS = ('name', 'kind', 'cost', 'needs', 'paper')
FORM = {'scores': 'ranks experts', 'choose': 'searches the set to keep',
        'plan': 'plans each layer itself'}
# What `prune.experts.request` lets each form have.
AMOUNTS = {form: tuple(a for a in budget.AMOUNTS if a != 'mass' or form == 'scores')
           for form in FORM}
SPREADS = {'scores': typing.get_args(budget.Spread), 'choose': ('layer',), 'plan': ('layer',)}
DROPPING = ('gates', 'replace', 'protect')
WITH = {'scores': DROPPING, 'choose': DROPPING, 'plan': ()}
EVERY = ('floor', 'clamp', 'first_layer', 'group')
HEAD = """# Methods

What a model can be shrunk with. This page is made of the docstrings and tables in `prune/`
(`moe-jax methods --markdown`; `moe-jax methods NAME` prints one section).

```sh
moe-jax observe MODEL --tasks boolq --methods naee --out stats.npz
moe-jax prune MODEL --method naee --experts 8 --options loss=sse --stats stats.npz --out SMALL
```

```python
stats = moe_jax.observe(cfg, params, batches, **prune.observe_options('naee'))
plan = prune.plan('naee', stats, params, cfg, experts=8, loss='sse')
small, small_cfg = prune.apply(params, cfg, plan)
```

A method reads statistics and parameters and gives a plan; nothing is changed before the plan is
applied. One observation serves every method whose statistics it has, every budget and every group
of the data. In the table, kind is what becomes of experts that do not stay: dropped, or merged into
others. Cost is what has to run once: nothing (weights only), a pass over data, a pass that keeps a
sample of tokens (reservoir), a pass in which all experts see all tokens (dense); two checkpoints
are read, and nothing runs. Needs are the
statistics that are read under the default options. What sets single weights inside experts to zero
is in [a section of its own](#weights-inside-experts).

"""


def rows() -> list[tuple[str, ...]]:
    """name, kind, cost, needs, paper of every method."""
    return [(row.name, row.kind, row.cost, ', '.join(row.needs) or '–', row.paper)
            for row in registry.methods()]


def table() -> Table:
    """For the terminal."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:  # what can be asked for by name is never cut, however narrow
        out.add_column(column, no_wrap=column in ('name', 'kind', 'needs'), overflow='fold')
    for method in registry.ALL.values():
        out.add_row(method.name, method.kind, method.cost.value,
                    '\n'.join(method.reads(method.options)) or '–', method.paper)
    return out


def markdown() -> str:
    """docs/methods.md."""
    listed = [(f'[{name}](#{name})', *rest) for name, *rest in rows()]
    parts = [HEAD, markdown_table(COLUMNS, listed), '\n## Each method\n\n']
    parts += [section(row.name) + '\n' for row in registry.methods()]
    return ''.join(parts) + _common() + '\n' + weight_markdown()


def section(name: str) -> str:
    """One method: its docstring, options and their defaults, what it reads, and what applies to it.

    Raises ValueError for an unknown method, with the nearest name.
    """
    method = registry.method(name)
    return SECTION[method.kind](method)


def _section(method: Method) -> str:
    """A method that drops or merges experts."""
    options = options_text(method.function, method.options)
    facts = '\n'.join(f'- {line}' for line in _facts(method))
    return (f'### {method.name}\n\n{prose(method.doc)}\n\n'
            f'**{FORM[method.form].capitalize()}.** {options}\n\n'
            f'**Needs and takes.**\n\n{facts}\n')


# What writes the section of a kind of method.
SECTION = {'drop': _section, 'merge': _section, 'weights': weight_section}


def _facts(method: Method) -> list[str]:
    """What a method reads, what to observe for it, and which common options it takes."""
    form, needs = method.form, method.reads(method.options)
    facts = [f'Paper: {method.paper}. Kind: {method.kind}. Cost: {method.cost}.',
             f'Reads {code_list(needs) if needs else "no statistics"}.']
    facts += [*_further(method, needs), *observing(method)]
    facts.append(f'Amounts: {code_list(AMOUNTS[form])}. Spreads: {code_list(SPREADS[form])}'
                 + (f', by default `{method.spread}`.' if method.spread != 'layer' else '.'))
    applies = ', '.join(f'`{key}`' for key in (*WITH[form], *EVERY))
    facts.append(f'Also takes {applies}.'
                 + (f' By default `replace={method.replace!r}`.' if method.replace != 'none'
                    else '')
                 + (' Reads every group of the statistics by itself.'
                    if method.per_group else ''))
    return facts


def _further(method: Method, needs: Collection[str]) -> list[str]:
    """Statistics that other values of the method's options ask for."""
    facts = []
    for key, values in method.option_needs.items():
        for value in values:
            reads = method.reads(method.options | {key: value})
            more = [n for n in reads if n not in needs]
            if more:
                how = '; '.join(dict.fromkeys(filter(None, map(option, more))))
                facts.append(f'`{key}={value!r}` also reads {code_list(more)}'
                             + (f' (observe with `{how}`).' if how else '.'))
    return facts


def _common() -> str:
    """The sections on what methods share."""
    forms = [(text, *(code_list(of[form]) or '–' for of in (AMOUNTS, SPREADS, WITH)))
             for form, text in FORM.items()]
    names = [p.name for p in inspect.signature(planner.plan).parameters.values()
             if p.kind is p.KEYWORD_ONLY]
    pooled = [f"- `'{how}'`: {one_line(f)}" for how, f in spread.POOLED.items()]
    kinds = [f"- `'{kind}'`{reads(routers.ROUTER_NEEDS[kind])}: {one_line(f, 1)}"
             for kind, f in routers.ROUTERS.items()]
    return '\n\n'.join([
        '## Common options', prose(planner.plan.__doc__, names),
        markdown_table(('a method that', 'amounts', 'spreads', 'takes'), forms).rstrip(),
        f'All take {code_list(EVERY)}.',
        'What these options read beside the method:\n\n' + '\n'.join(_option_needs()),
        '## Budgets and spreads', prose(budget.__doc__), fields_text(budget.Amounts),
        prose(budget.Budget.__doc__, list(budget.Budget.__dataclass_fields__)),
        'By what a spread compares two layers, and what an amount in `mass` keeps:',
        '\n'.join([*pooled, f'- `mass=`: {one_line(spread.covering)}']), '## Gates and replacement',
        prose(keep.__doc__), prose(keep.drop.__doc__),
        '## What is exact and what is rescaled', _exact(), '## Protection',
        prose(protect.__doc__), prose(protect.super_experts.__doc__),
        '## The router of merged experts', prose(routers.__doc__), '\n'.join(kinds),
        '### logsumexp', prose(routers.logsumexp.__doc__), prose(routers.lse_fit.__doc__),
        '### center', prose(similarity.__doc__),
    ]) + '\n'


def _option_needs() -> list[str]:
    """One line for each value of a common option that reads statistics."""
    tables = {'replace': keep.REPLACE_NEEDS, 'protect': request.PROTECT_NEEDS,
              'first_layer': request.FIRST_NEEDS, 'spread': budget.NEEDS}
    return [f'- `{key}={value!r}`{reads(needs)}' for key, values in tables.items()
            for value, needs in values.items() if needs]


def _exact() -> str:
    """What happens to the gates of experts that stay, as plans note it, for every convention."""
    lost, made = np.array([0]), []
    shown: tuple[tuple[keep.Gates, Replace], ...] = (
        ('slice', 'none'), ('preserve_mass', 'none'), ('slice', 'mean'))
    for gate in GATE:
        cfg = Config(vocab=8, positions=8, width=8, heads=1, mlp_hidden=8, expert_hidden=8,
                     experts=(2,), gate=gate)  # pyright: ignore[reportCallIssue] (of its router)
        made.append((gate, *(keep.effect(lost, {}, cfg, gates, replace)
                             for gates, replace in shown)))
    text = 'What a plan notes about the gates of the experts that stay, by convention of the model:'
    columns = ('gate', "gates='slice'", "gates='preserve_mass'", "replace='mean'")
    return f'{text}\n\n{markdown_table(columns, made).rstrip()}'
