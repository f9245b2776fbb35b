"""How the demo model is trained: the order of its text, the optimizer, one step. Knows ids, not texts or files."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from tools.train_demo.network import Params, Shape, loss

Update = Callable[[Params, Any, np.ndarray], tuple[Any, Any, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run may vary; two runs of one recipe on one Python and one kind of machine give the same model."""

    steps: int = 1540
    tokens: int = 2048  # of a step
    window: int = 256  # tokens that see each other
    rate: float = 0.02  # of Muon, for the matrices; Adam's, for the rest, is a fifth of it
    decay: float = 0.1
    warm_up: int = 50  # steps
    falling: float = 0.3  # share of the steps in which the rate falls to nothing
    long: float = 0.1  # share of the steps, the last, with windows of twice the length: far positions are learned last
    seed: int = 1

    def length(self, step: int) -> int:
        """Tokens of the windows of a step."""
        return self.window * (2 if step >= (1 - self.long) * self.steps else 1)


def windows(documents: list[np.ndarray], recipe: Recipe, step: int) -> np.ndarray:
    """The int32 windows (B, length + 1) of a step: documents in a new order each epoch, one after the other."""
    epoch, at = divmod(step * recipe.tokens, sum(map(len, documents)))
    orders = [np.random.default_rng((recipe.seed, e)).permutation(len(documents)) for e in (epoch, epoch + 1)]
    stream = np.concatenate([documents[i] for order in orders for i in order])[at:]
    length = recipe.length(step)
    return np.stack([stream[i : i + length + 1] for i in range(0, recipe.tokens, length)])


def optimizer(params: Params, recipe: Recipe) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, (L, out, in), and Adam for embedding and norms."""
    falling = int(recipe.falling * recipe.steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0, 1, recipe.warm_up),
            optax.constant_schedule(1.0),
            optax.linear_schedule(1, 0, falling),
        ],
        [recipe.warm_up, recipe.steps - falling],
    )
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=2, output_axis=1)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            lambda step: recipe.rate * schedule(step),
            weight_decay=recipe.decay,
            adam_learning_rate=lambda step: recipe.rate / 5 * schedule(step),
            muon_weight_dimension_numbers=jax.tree.map(lambda x: matrix if x.ndim == 3 else None, params),
        ),
    )


def updater(tx: optax.GradientTransformation, shape: Shape) -> Update:
    """The jitted step: (parameters, optimizer state, windows) -> the next two, and the loss before."""

    @jax.jit
    def update(params: Params, state: Any, batch: np.ndarray) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch, shape)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return update


def held_out_loss(params: Params, ids: np.ndarray, shape: Shape, length: int) -> float:
    """Mean loss of the int32 ids (tokens,) of a text in windows that do not overlap, whole batches of 8 of them."""
    batch = np.arange(8)[:, None] * length + np.arange(length + 1)
    starts = range(0, len(ids) - 8 * length, 8 * length)
    return float(np.mean([_loss(params, ids[start + batch], shape) for start in starts]))


_loss = jax.jit(loss, static_argnames="shape")
