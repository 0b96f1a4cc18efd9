"""Rows sorted by expert, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.experts.sorting import by_expert

SORTED = jax.jit(by_expert, static_argnums=1)


@pytest.mark.parametrize('experts', [
    [2, 0, 3, 2, 1, 0, 3, 2], [3, 3, 3, 3, 3, 3, 3, 3], [1, 1, 1, 1, 1, 1, 1, 1],
], ids=str)
def test_by_expert_keeps_the_order_of_an_experts_rows(experts):
    order, inverse, sizes = SORTED(jnp.asarray(experts, jnp.int32), 3)  # 3 stands for none
    np.testing.assert_array_equal(order, np.argsort(experts, kind='stable'))
    np.testing.assert_array_equal(np.asarray(order)[np.asarray(inverse)], np.arange(8))
    np.testing.assert_array_equal(sizes, np.bincount(experts, minlength=4)[:3])
    assert order.dtype == inverse.dtype == sizes.dtype == jnp.int32
