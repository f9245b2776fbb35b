"""Where arrays lie: one device, or a mesh of them. Knows the axes of `model.spec.sharding`, no weights, no steps."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from packlight.common import pages
from packlight.model.spec.sharding import DATA, TENSOR, WHOLE, Split

Device = Any  # jax.Device, which type checkers see as a variable
P = jax.sharding.PartitionSpec
PINNED = "pinned_host"  # jax's name of the kind of memory


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices, and how they share a model. Each of several processes reads and places its own devices' parts."""

    devices: tuple[tuple[Device, ...], ...]  # (data, tensor)
    split: Split = WHOLE

    @classmethod
    def on(cls, devices: list[Device], split: Split = WHOLE) -> "Placement":
        """Takes as many of `devices` as the split wants. Neighbours in the list are neighbours along tensor."""
        rows = (devices[row * split.tensor : (row + 1) * split.tensor] for row in range(split.data))
        return cls(tuple(map(tuple, rows)), split)

    @property
    def flat(self) -> list[Device]:
        return [device for row in self.devices for device in row]

    @property
    def local(self) -> list[Device]:
        """The devices of this process."""
        return [device for device in self.flat if device.process_index == jax.process_index()]

    @property
    def single(self) -> bool:
        return len(self.flat) == 1

    @property
    def mesh(self) -> jax.sharding.Mesh:
        return jax.sharding.Mesh(np.array(self.devices), (DATA, TENSOR))

    @property
    def tensor_numbers(self) -> list[int]:
        """Numbers along the tensor axis of this process's own devices."""
        mine = jax.process_index()
        return sorted({n for row in self.devices for n, device in enumerate(row) if device.process_index == mine})

    def sharding(self, spec: P = P()) -> jax.sharding.Sharding:  # noqa: B008  immutable
        """How an array cut by `spec` lies on the devices."""
        if self.single:
            return jax.sharding.SingleDeviceSharding(self.flat[0])
        return jax.sharding.NamedSharding(self.mesh, spec)

    def host_sharding(self) -> jax.sharding.Sharding:
        """How an array lies in the host's memory from which the single device can copy while it computes."""
        (device,) = self.flat
        sharding = jax.sharding.SingleDeviceSharding(device, memory_kind=PINNED)
        return sharding if sharding.memory_kind == PINNED else _Pinned(device)

    def put_in_host(self, x: np.ndarray) -> jax.Array:
        """Brings a host array there."""
        return jax.device_put(x, self.host_sharding())

    def put(self, tree: Any, spec: P = P(), alias: bool = True) -> Any:  # noqa: B008
        """Brings host arrays, which are the same in every process, onto the devices.

        alias: a CPU may use them in place, uncopied. False for arrays that are donated.
        """
        sharding, may_alias = self.sharding(spec), None if alias else False

        def one(x: np.ndarray) -> jax.Array:
            if sharding.is_fully_addressable:
                return jax.device_put(x, sharding, may_alias=may_alias)
            places = sharding.addressable_devices_indices_map(x.shape).items()
            parts = [jax.device_put(x[index], device, may_alias=may_alias) for device, index in places]
            return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)

        return jax.tree.map(one, tree)

    def zeros(self, shape: tuple[int, ...], dtype: str, spec: P = P()) -> jax.Array:  # noqa: B008
        """Zeros cut by `spec`, which may be donated. On a CPU they take memory only where they are written, if the
        system can do that (`common.pages.refusal`), each device's part made and given back before the next.
        """
        sharding = self.sharding(spec)
        part = _zeros_to_copy(sharding.shard_shape(shape), jnp.dtype(dtype))

        def on(device: Device) -> jax.Array:
            array: Any = jax.device_put(part, device, may_alias=False)
            if device.platform != "cpu" or pages.refusal() is not None:
                return array
            address = array.unsafe_buffer_pointer()
            while not array.is_ready():  # XLA copies zeros in the background: those it has written go at once
                pages.give_back(address, array.nbytes)
                time.sleep(0.002)
            pages.give_back(address, array.nbytes)
            return array

        parts = [on(device) for device in sharding.addressable_devices_indices_map(shape)]
        return jax.make_array_from_single_device_arrays(shape, sharding, parts)

    def join(self, parts: Mapping[int, np.ndarray], axis: int | None) -> jax.Array:
        """One array of all devices, from the parts of this process's devices.

        parts: by the device's number along the tensor axis. axis: of the array, along which the parts follow each
            other; None where every device holds parts[0].
        """
        if self.single:
            return jax.device_put(parts[0], self.flat[0])
        mine = jax.process_index()
        local = [
            jax.device_put(parts[0 if axis is None else number], device)
            for row in self.devices
            for number, device in enumerate(row)
            if device.process_index == mine
        ]
        shape = list(local[0].shape)
        if axis is not None:
            shape[axis] *= self.split.tensor
        return jax.make_array_from_single_device_arrays(tuple(shape), self.sharding(cut_along(axis)), local)


class _Pinned(jax.sharding.SingleDeviceSharding):
    """Memory of the host of a GPU that is not here: of such a device jax knows no memories and drops their kind."""

    @property
    def memory_kind(self) -> str:
        return PINNED

    def __hash__(self) -> int:
        return hash((super().__hash__(), PINNED))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Pinned) and super().__eq__(other)


def _zeros_to_copy(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin beside a multiple of 64 bytes: jax 0.10 and 0.11 use those at one in place in spite of
    `may_alias=False`, and then the first step that is given the array copies all of it.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(nbytes + 128, np.uint8)
    first = -memory.ctypes.data % 64 + 16
    return memory[first : first + nbytes].view(dtype).reshape(shape)


def cut_along(axis: int | None) -> P:
    """The spec of an array that the tensor devices share along `axis`. None: each of them holds all of it."""
    return P() if axis is None else P(*[None] * axis, TENSOR)
