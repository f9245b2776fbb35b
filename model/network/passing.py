"""The loop over layers that pass through a device: each is fetched from the host while the one before it runs.

What the program says is one thing, what XLA makes of it another; so some things are said in data, which it cannot know:

- A layer's number comes from an array. Of one that is computed, jaxlib 0.10.2's annotator of slices writes down a wrong
  offset in host memory for a GPU.
- Every layer is a loop of its own that runs once, from its number to the next one. Schedulers put a fetch behind the
  layer beside it where they see the layer's parts, into the same buffer; a loop they start it before.
- A branch would do that too, but the cache is copied on its way through a branch, and written in place in a loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from packlight.model.weights.params import Params
from packlight.model.weights.ring import Fetched, fetch, viewed

# What runs a layer: (stacks of its matrices by part and name, its number in the model, carry) -> carry.
Run = Callable[[Params, jax.Array, Any], Any]


def first_of(params: Params) -> Fetched:
    """The first streamed layer, fetched: before what it need not wait for."""
    return fetch(params["ring"], params["numbers"][0])


def pass_through(params: Params, kept: int, first: Fetched, run: Run, carry: Any) -> Any:
    """Runs the streamed layers in turn; kept: how many layers come before them."""
    rings, numbers = params["ring"], params["numbers"]
    last = numbers.shape[0] - 2

    def layer(fetched: Fetched, number: jax.Array, carry: Any) -> Any:
        return run(viewed(rings, fetched, kept), kept + number, carry)

    def body(at: jax.Array, held: tuple[Fetched, Any]) -> tuple[Fetched, Any]:
        fetched, carry = held
        following = fetch(rings, numbers[at + 1])
        once = lax.fori_loop(numbers[at], numbers[at + 1], lambda number, c: layer(fetched, number, c), carry)
        return following, once

    fetched, carry = lax.fori_loop(0, last, body, (first, carry)) if last else (first, carry)
    return layer(fetched, jnp.int32(last), carry)
