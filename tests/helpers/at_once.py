"""The same computation on all eight devices at once, each called from a thread of its own."""

import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def assert_eight_devices_finish(compute: Callable[..., jax.Array], operands: tuple[Any, ...], want: np.ndarray) -> None:
    """Every device ends within a minute and gives `want`, bit for bit."""
    devices = jax.devices()
    assert len(devices) == 8
    failures = []

    def run(device: jax.Device) -> None:
        if not np.array_equal(compute(*jax.device_put(operands, device)), want):
            failures.append(device)

    runs = [threading.Thread(target=run, args=(d,), daemon=True) for d in devices]
    for t in runs:
        t.start()
    for t in runs:
        t.join(timeout=60)
    assert not any(t.is_alive() for t in runs)
    assert not failures
