"""Norms and dot products of rows natively: against numpy, and with the same bits in any company."""

import jax
import numpy as np
import pytest
from natives import isas

from packlight.quant.kernels import native_rows

pytestmark = pytest.mark.usefixtures("native_library")

WIDTHS = (1, 7, 16, 63, 64, 80, 257, 2048)
EPSILON = 1e-5

norm = jax.jit(native_rows.norm, static_argnames=("epsilon", "centered", "divisor", "threads", "isa"))
dots = jax.jit(native_rows.dots, static_argnames=("threads", "isa"))


def case(width, rows=6, layers=2, period=3, seed=0):
    """x (rows, width), weights and biases (layers, period, width), float32."""
    rng = np.random.default_rng(seed)
    return [rng.normal(1, 3, shape).astype(np.float32) for shape in ((rows, width), *((layers, period, width),) * 2)]


@pytest.mark.parametrize("centered", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("width", WIDTHS)
def test_norms_are_float64s(width, centered):
    """The sum of squares of W numbers is off by W 2^-24 of itself, its root by half of that; five roundings follow.

    Numbers less their mean are off by what the mean is, W 2^-24 of the largest.
    """
    x, weights, biases = case(width)
    exact = x.astype(np.float64) - (x.astype(np.float64).mean(1, keepdims=True) if centered else 0)
    mean = (exact**2).mean(1, keepdims=True)
    unit = exact / np.sqrt(mean + EPSILON)
    lost = 2.0**-24 * np.abs(x).max() * (width + 1) / np.sqrt(mean + EPSILON) if centered else 0
    at = np.arange(len(x)) % 3
    bound = (np.abs(unit) * (width / 2 + 5) * 2.0**-24 + lost * 2) * np.abs(weights[1, at]) + 2.0**-23 * 20
    for isa in isas():
        y = norm(x, weights, biases, 1, epsilon=EPSILON, centered=centered, isa=isa)
        assert (np.abs(y - (unit * weights[1, at] + biases[1, at])) <= bound).all(), isa
        bare = norm(x, None, None, epsilon=EPSILON, centered=centered, divisor=1, isa=isa)
        expected = exact / np.sqrt((exact**2).sum(1, keepdims=True) + EPSILON)
        assert np.abs(bare - expected).max() <= (np.abs(expected) * (width / 2 + 5) * 2.0**-24 + lost * 2).max(), isa


@pytest.mark.parametrize("width", WIDTHS)
def test_dots_are_float64s(width):
    a, b = (case(width, seed=seed)[0] for seed in (1, 2))
    for isa in isas():
        for other in (b, b[:1]):
            products = a.astype(np.float64) * other
            bound = width * 2.0**-24 * np.abs(products).sum(1)
            assert (np.abs(dots(a, other, isa=isa) - products.sum(1)) <= bound).all(), isa


@pytest.mark.parametrize("width", [80, 4096])
def test_a_row_has_the_same_bits_in_any_company(width):
    """Alone, among a few, and among so many that several threads share them."""
    x, weights, biases = case(width, rows=48, period=1)
    for isa in isas():
        how = {"epsilon": EPSILON, "centered": True, "isa": isa}
        whole, sums = norm(x, weights, biases, 1, threads=1, **how), dots(x, weights[0], threads=1, isa=isa)
        for rows in (1, 3, 48):
            for threads in (1, 2, 3, 8):
                for first in {0, 48 - rows}:
                    part = slice(first, first + rows)
                    y = norm(x[part], weights, biases, 1, threads=threads, **how)
                    np.testing.assert_array_equal(y, whole[part])
                    np.testing.assert_array_equal(dots(x[part], weights[0], threads=threads, isa=isa), sums[part])


def test_what_does_not_fit_is_refused():
    x, weights, biases = case(32)
    with pytest.raises(Exception, match="outside the weights"):
        jax.block_until_ready(norm(x, weights, biases, 2, epsilon=EPSILON))
    with pytest.raises(Exception, match="want a"):
        jax.block_until_ready(dots(x, x[:, :5]))
