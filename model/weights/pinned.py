"""Where the layers of a streamed model are on a device with memory of its own: on it, or in its host. Imports no jax.

The first layers stay on the device, as many as the budget lets. The others lie in the host's pinned memory, and every
step copies them in turn: while one is computed the next one is on its way (`model.network.passing`). Whichever
layers stay, a step copies as much; that they are the first ones leaves the copies in one row.
"""

import bisect
import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

from packlight.common.errors import Argument, ConfigError, MemoryLimitError
from packlight.common.text import megabytes
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.parts.attention import AttentionPart
from packlight.model.spec.parts.dense import DensePart
from packlight.model.weights.load import Buffer
from packlight.quant.formats.table import FORMATS
from packlight.quant.layouts import LANES, SUPERBLOCK

# Layers that a step holds beside those that stay, as it is compiled: of 27 MB each 2.0 on GPUs, 2.8 on TPUs, where XLA
# brings matrices of the layer that runs to memory of the chip's own beforehand.
BUFFERS = {"gpu": 2, "tpu": 3}


@dataclasses.dataclass(frozen=True)
class Pinned:
    """Where a model's layers are while it runs."""

    sizes: tuple[int, ...]  # of each layer's matrices, bytes
    passing: int  # bytes of a layer in the host's memory: each matrix takes as much as the widest of its formats
    outside_bytes: int  # of matrices outside layers
    buffers: int  # layers that the device has room for beside those that stay
    kept: int  # layers that stay, the first ones

    @property
    def layers(self) -> int:
        return len(self.sizes)

    @property
    def streamed(self) -> int:
        """Layers that are copied in every pass over them."""
        return self.layers - self.kept

    @property
    def kept_bytes(self) -> int:
        return sum(self.sizes[: self.kept])

    @property
    def ring_bytes(self) -> int:
        """What layers on their way take at a time. It is part of a step's scratch."""
        return self.buffers * self.passing if self.streamed else 0

    @property
    def resident_bytes(self) -> int:
        """What stays on the device."""
        return self.outside_bytes + self.kept_bytes

    @property
    def step_bytes(self) -> int:
        """What each pass over the layers copies, and what lies in the host's memory."""
        return self.streamed * self.passing

    def __str__(self) -> str:
        parts = [f"outside layers {megabytes(self.outside_bytes)}"]
        if self.kept:
            parts.append(f"layers 0-{self.kept - 1} {megabytes(self.kept_bytes)}")
        if self.streamed:
            parts.append(f"{self.buffers} of the other {self.streamed} {megabytes(self.ring_bytes)}")
        return f"{', '.join(parts)}; {megabytes(self.step_bytes)} copied from pinned host memory a step"


def plan_pinned(
    buffers: Sequence[Buffer], layers: int, room: int, budget: int, whose: Sequence[str | Argument], beside: int = 0
) -> Pinned:
    """The residence that keeps the most layers within `budget` bytes, of which `beside` are for something else; the
    layers on their way are included.

    buffers: of all matrices. room: `Pinned.buffers`. Raises MemoryLimitError, which begins with `whose` budget it is
    and names the least, when even none of the layers is too many.
    """
    sizes, outside = [0] * layers, 0
    widest: collections.Counter[str] = collections.Counter()
    for buffer in buffers:
        each = math.prod(buffer.shape[1:])
        for tensor in buffer.tensors:
            if not tensor.startswith("blk."):
                outside += each
                continue
            _, layer, name = tensor.split(".", 2)
            sizes[int(layer)] += each
            widest[name] = max(widest[name], each)
    passing = sum(widest.values())

    def taken(kept: int) -> int:
        where = Pinned(tuple(sizes), passing, outside, room, kept)
        return beside + where.resident_bytes + where.ring_bytes

    # with all layers but one a ring takes more than with all of them: the latter may fit alone
    kept = layers if taken(layers) <= budget else bisect.bisect_right(range(layers), budget, key=taken) - 1
    if kept < 0:
        said = f"{taken(0):,} bytes are the least"
        raise MemoryLimitError(*whose, f" {megabytes(max(0, budget))} for streamed weights; {said}")
    return Pinned(tuple(sizes), passing, outside, room, kept)


def check_pinned(model: ModelConfig, formats: Mapping[str, str], layouts: Mapping[str, str]) -> None:
    """Raises ConfigError for a model whose layers cannot pass through a device.

    formats, layouts: of its tensors.
    """
    said, first = Argument("weights", "streamed"), model.layers[0]
    if model.expert_count:
        raise ConfigError(said, ": layers with experts are not streamed to a GPU or TPU")
    plain = all(isinstance(mixer, AttentionPart) for mixer in first.mixers) and isinstance(first.ffn, DensePart)
    if not plain or len(first.parts) != len(first.mixers) + 1 or any(layer != first for layer in model.layers):
        raise ConfigError(said, ": to a GPU or TPU only equal layers of attention and a dense part are streamed")
    kinds: dict[str, tuple[str, int]] = {}
    for tensor, layout in layouts.items():
        kind = layout, FORMATS[formats[tensor]].elements if layout in LANES else SUPERBLOCK
        if tensor.startswith("blk.") and kinds.setdefault(tensor.split(".", 2)[2], kind) != kind:
            raise ConfigError(said, f": '{tensor}' and that of other layers have formats with no layout in common")
