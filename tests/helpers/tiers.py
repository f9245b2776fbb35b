"""Which cases of a product `make test` runs: each proof once. The full product is for `make test-more`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def tiered(cases: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """The cases in their order; those that are not kept are marked `product`. Raises where none of `kept` is a case."""
    cases = list(cases)
    if absent := [case for case in kept if case not in cases]:
        raise ValueError(f"no such cases: {absent}")
    return [case if case in kept else product(case) for case in cases]


def product(*values: Any) -> Any:
    """One case of a parametrization that only `make test-more` runs."""
    return pytest.param(*values, marks=pytest.mark.product)
