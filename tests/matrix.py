"""Rows of exhaustive matrices: some run with every change, the others carry the marker `full`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rows(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Parameters for `pytest.mark.parametrize`: those outside `quick` are marked `full`.

    A tuple stands for several arguments.
    """
    return [value if value in quick else
            pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.full)
            for value in values]
