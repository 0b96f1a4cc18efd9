"""A method as a value: what it is called, what it reads, what it costs, and the function it is.

Every file of `prune/experts/methods` and `prune/weights/methods` ends in `METHOD = Method(...)`,
which is checked when the file is imported. Letters: E experts of a layer, G experts it keeps.
"""

import dataclasses
import enum
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from moe_jax.base.checks import nearest
from moe_jax.calibration.table import STATISTICS, statistic
from prune.budget.amounts import Spread
from prune.inputs.options import options_of

Kind = Literal['drop', 'merge', 'weights']
Form = Literal['scores', 'choose', 'plan', 'solve']
Replace = Literal['none', 'mean']
Scope = Literal['output', 'matrix', 'layer', 'global']
Function = Callable[..., Any]
Counts = Mapping[int, int]  # {layer: G}
# Names of statistics, or those of each part that a unit has (of an expert: gate, up, down).
Needs = tuple[str, ...] | Mapping[str, tuple[str, ...]]


class Cost(enum.StrEnum):
    """What has to run once before a method can plan."""

    WEIGHTS = 'weights only'
    CHECKPOINTS = 'two checkpoints'
    PASS = 'one pass'
    RESERVOIR = 'one pass, reservoir'
    DENSE = 'one pass, dense'
    GRADIENTS = 'one pass, gradients'
    GRAMS = 'one pass, grams'

    @property
    def observes(self) -> bool:
        """Whether a pass over data collects statistics."""
        return self not in (Cost.WEIGHTS, Cost.CHECKPOINTS)


_LAYERS = ('stats', 'params', 'cfg')
# The forms that a kind of method may have, and the positional parameters of each.
FORMS: Mapping[Kind, Mapping[Form, tuple[str, ...]]] = {
    'drop': {'scores': _LAYERS, 'choose': (*_LAYERS, 'counts'), 'plan': (*_LAYERS, 'counts')},
    'merge': {'plan': (*_LAYERS, 'counts')},
    'weights': {'scores': ('stack',), 'solve': ('stack', 'sparsity', 'pattern')},
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Method:
    """A method; exactly one of scores, choose, plan and solve is its function.

    The function's keyword-only parameters are the method's options. Raises ValueError or TypeError,
    when it is made, for fields that contradict each other or the function.
    """

    name: str  # by which `prune.plan` and the command line find it
    title: str  # as a report writes it
    doc: str | None  # the docstring of its file, published in docs/methods.md
    paper: str  # short, for tables
    kind: Kind  # what becomes of that which does not stay: dropped, merged, or zeros in weights
    cost: Cost  # under the default options
    needs: Needs = ()  # statistics that it reads whatever its options
    # option -> value -> further statistics
    option_needs: Mapping[str, Mapping[Any, Needs]] = dataclasses.field(default_factory=dict)
    scores: Function | None = None  # ranks: {layer: [E]}, or of weights [E, in, out]; the least go
    choose: Function | None = None  # searches the set to keep: {layer: ascending ids [G]}
    plan: Function | None = None  # plans each layer itself: {layer: LayerPlan}
    solve: Function | None = None  # masks and updates weights: (mask, weights, fallback ids)
    per_group: bool = False  # takes {data group: {layer: statistics}} instead of their sum
    spread: Spread = 'layer'  # of a budget over layers, where none is given
    replace: Replace = 'none'  # what stands for a dropped expert, where nothing is said
    scope: Scope | None = None  # within what scores of weights are compared, where none is given
    place: float = math.inf  # in tables and docs, rising; methods without one come last, by name

    def __post_init__(self) -> None:
        if len(self._functions) != 1:
            raise TypeError(
                f'method {self.name!r}: give exactly one of {", ".join(typing.get_args(Form))}; '
                f'got {", ".join(self._functions) or "none"}')
        _check_words(self)
        _check_function(self)
        _check_fields(self)
        _check_needs(self)

    @property
    def form(self) -> Form:
        """How the method decides: the name of its function's field."""
        return next(iter(self._functions))

    @property
    def function(self) -> Function:
        """The function of the method's form."""
        return self._functions[self.form]

    @property
    def options(self) -> dict[str, Any]:
        """The method's options and their defaults."""
        return options_of(self.function)

    def reads(self, options: Mapping[str, Any], parts: Sequence[str] | None = None
              ) -> tuple[str, ...]:
        """The statistics that the method reads with all these options, each once.

        parts: only these parts of a unit, where needs differ by part (default: all).
        """
        tables = [self.needs, *(values[options[key]] for key, values in self.option_needs.items()
                                if options[key] in values)]
        if parts is None:
            parts = list(self.needs) if isinstance(self.needs, Mapping) else ()
        names = [n for table in tables if not isinstance(table, Mapping) for n in table]
        names += [n for part in parts for table in tables if isinstance(table, Mapping)
                  for n in table[part]]
        return tuple(dict.fromkeys(names))

    @property
    def _functions(self) -> dict[Form, Function]:
        fields: dict[Form, Function | None] = {
            'scores': self.scores, 'choose': self.choose, 'plan': self.plan, 'solve': self.solve}
        return {form: function for form, function in fields.items() if function is not None}


def _check_words(method: Method) -> None:
    for field in ('name', 'title', 'paper'):
        if not (isinstance(text := getattr(method, field), str) and text.strip()):
            raise TypeError(f'method {method.name!r}: {field}={text!r}: must be a text')
    for field, valid in (('kind', Kind), ('spread', Spread), ('replace', Replace)):
        if (word := getattr(method, field)) not in typing.get_args(valid):
            raise ValueError(f'method {method.name!r}: {field}={word!r}; '
                             f'{nearest(str(word), typing.get_args(valid))}')
    if not isinstance(method.cost, Cost):
        raise TypeError(f'method {method.name!r}: cost={method.cost!r}: must be a Cost')


def _check_function(method: Method) -> None:
    """The function's form, its positional parameters, and options with types and defaults."""
    name, forms = f'method {method.name!r}', FORMS[method.kind]
    if method.form not in forms:
        raise TypeError(f'{name}: kind {method.kind!r} has no form {method.form!r}; valid: '
                        f'{", ".join(forms)}')
    parameters = inspect.signature(method.function, eval_str=True).parameters.values()
    positional = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
    if positional != forms[method.form]:
        raise TypeError(f'{name}: {method.form} takes {", ".join(forms[method.form])}, then '
                        f'options by keyword; got {", ".join(positional)}')
    hints = typing.get_type_hints(method.function)
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and (
                parameter.default is parameter.empty or parameter.name not in hints):
            raise TypeError(f'{name}: option {parameter.name!r} needs a type and a default')


def _check_fields(method: Method) -> None:
    """Defaults of common options only where the method takes them."""
    name, ranks = f'method {method.name!r}', method.kind == 'drop' and method.form == 'scores'
    drops = method.kind == 'drop' and method.form != 'plan'
    for field, says, takes in (
        ('per_group', method.per_group, ranks), ('spread', method.spread != 'layer', ranks),
        ('replace', method.replace != 'none', drops),
    ):
        if says and not takes:
            raise TypeError(f'{name}: {field} is for methods that '
                            f'{"drop" if field == "replace" else "rank"} experts')
    if (method.kind == 'weights') != (method.scope in typing.get_args(Scope)):
        raise TypeError(f'{name}: scope={method.scope!r}: one of '
                        f'{", ".join(typing.get_args(Scope))} for weights, else None')
    if method.form == 'solve' and method.scope != 'output':
        raise TypeError(f"{name}: solve prunes every output by itself; give scope='output'")


def _check_needs(method: Method) -> None:
    """Needs are statistics that exist, of options and values that exist, and fit the cost."""
    name, options = f'method {method.name!r}', method.options
    hints = typing.get_type_hints(method.function)
    for key, values in method.option_needs.items():
        if key not in options:
            raise ValueError(f'{name}: option_needs of {key!r}, which is no option; '
                             f'{nearest(key, list(options))}')
        valid = typing.get_args(hints[key]) or (True, False)
        if unknown := [value for value in values if value not in valid]:
            raise ValueError(f'{name}: option_needs of {key}={unknown[0]!r}; valid: '
                             f'{", ".join(map(repr, valid))}')
    for table in (method.needs, *(t for of in method.option_needs.values() for t in of.values())):
        for need in _names(table):
            try:
                statistic(need)
            except KeyError:
                raise ValueError(f'{name} needs the statistic {need!r}; '
                                 f'{nearest(need, list(STATISTICS))}') from None
    if bool(method.reads(options)) != method.cost.observes:
        reads = ', '.join(method.reads(options)) or 'no statistics'
        raise ValueError(f'{name}: cost={method.cost.value!r}, but by default it reads {reads}')


def _names(needs: Needs) -> list[str]:
    if isinstance(needs, Mapping):
        return [name for names in needs.values() for name in names]
    return list(needs)
