"""How the demo model is trained: the order of its text, the optimizer, one step. Knows ids, not texts or files."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from tools.train_demo.network import Params, Shape, loss
from tools.train_demo.vocabulary import SPECIAL, USER_ID

Update = Callable[[Params, Any, np.ndarray, np.ndarray], tuple[Any, Any, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run may vary; two runs of one recipe on one Python and one kind of machine give the same model."""

    steps: int = 1075
    tokens: int = 3072  # of a step
    reading: int = 250  # steps, the first, in which two sixths of the tokens are text; then it is one sixth
    window: int = 128  # tokens that see each other
    long: float = 0.06  # share of the steps, the last, with longer windows: far positions are learned last
    longer: int = 4  # times the length
    rate: float = 0.02  # of Muon, for the matrices; Adam's, for the rest, is a fifth of it
    decay: float = 0.05
    warm_up: int = 40  # steps
    falling: float = 0.3  # share of the steps in which the rate falls to nothing
    seed: int = 1

    def length(self, step: int) -> int:
        """Tokens of the windows of a step."""
        return self.window * (self.longer if step >= (1 - self.long) * self.steps else 1)

    def text(self, steps: int) -> int:
        """Tokens of text in the first so many steps; the rest of them are questions and answers."""
        return (steps + min(steps, self.reading)) * self.tokens // 6


class Streams(NamedTuple):
    """What training reads: int32 ids (tokens,) of text and of conversations, each as long as the steps need."""

    text: np.ndarray
    asked: np.ndarray


def stream(epoch: Callable[[int], list[np.ndarray]], tokens: int) -> np.ndarray:
    """More than so many ids: the documents of epoch 0, 1, ..., one after the other, int32 (tokens,)."""
    found, number = [*epoch(0)], 1
    while sum(map(len, found)) <= tokens:
        found += epoch(number)
        number += 1
    return np.concatenate(found)


def windows(streams: Streams, recipe: Recipe, step: int) -> np.ndarray:
    """The int32 windows (B, length + 1) of a step."""
    length = recipe.length(step)
    read, reads = recipe.text(step), recipe.text(step + 1)
    asked, asks = step * recipe.tokens - read, (step + 1) * recipe.tokens - reads
    text = [streams.text[i : i + length + 1] for i in range(read, reads, length)]
    return np.stack([*text, *(streams.asked[i : i + length + 1] for i in range(asked, asks, length))])


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


def told(windows: np.ndarray) -> np.ndarray:
    """Which tokens of int32 windows (B, T) the model is to say, bool (B, T): all but those of a user's message."""
    places = np.where(windows < len(SPECIAL), np.arange(windows.shape[1]), 0)
    places = np.maximum.accumulate(places, 1)  # of the special token last seen, at each
    before = np.concatenate([places[:, :1], places[:, :-1]], 1)
    return np.take_along_axis(windows, before, 1) != USER_ID


def updater(tx: optax.GradientTransformation, shape: Shape) -> Update:
    """The jitted step: (parameters, optimizer state, windows, told) -> the next two, and the loss before."""

    @jax.jit
    def update(params: Params, state: Any, batch: np.ndarray, told: np.ndarray) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch, told, shape)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    return update


def held_out_loss(params: Params, ids: np.ndarray, shape: Shape, length: int) -> float:
    """Mean loss of the int32 ids (tokens,) of a text, or of the answers in conversations.

    In windows that do not overlap, as many whole ones as there are.
    """
    batch = np.stack([ids[i : i + length + 1] for i in range(0, len(ids) - length, length)])
    return float(_loss(params, batch, told(batch), shape))


_loss = jax.jit(loss, static_argnames="shape")
