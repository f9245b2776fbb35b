"""The parts that layers are made of, a file each: what a part weighs, and what it keeps between steps. No jax.

A part is a kind with the hyperparameters of the layers that share it. Its tensors are stacked over these layers, and so
is its state. What it computes is in `model.network`: `MIXERS` and `FFNS` of `model.network.forward`.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from packlight.model.spec.state import Room
from packlight.model.spec.weight import Weight

if TYPE_CHECKING:
    from packlight.model.spec.config import ModelConfig


class Part(Protocol):
    """What is asked of every part. Parts are hashable, and equal where layers can share a stack."""

    @property
    def name(self) -> str:
        """Its name among the parts of the model: the key of its weights and of its state."""
        ...

    def weights(self, cfg: "ModelConfig") -> Iterable[Weight]:
        """Its tensors in one layer, without the biases of matrices, which are the family's business."""
        ...


class Mixer(Part, Protocol):
    """A part that brings together what is at several positions, and so keeps a state between steps."""

    @property
    def state_name(self) -> str:
        """Under which its state is found: its own name, or that of a mixer of layers before, whose state it reads."""
        ...

    def state(self, cfg: "ModelConfig", layers: int, room: Room) -> Any:
        """Its state in so many layers: a NamedTuple of Buffers, each (layers, slots, ...)."""
        ...

    def rewinds(self, room: Room, written: int, length: int) -> bool:
        """Whether a slot whose first `written` positions were written can go on from its first `length` ones."""
        ...
