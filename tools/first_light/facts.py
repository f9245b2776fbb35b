"""Versions of what is installed, the device, and its measured limits.

python -m tools.first_light.facts
"""

import importlib.metadata
import json

import jax

from tools.first_light.common import limits

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "numpy", "gguf")


def main() -> None:
    for name in PACKAGES:
        try:
            print(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            print(name, "absent")
    device = jax.devices()[0]
    print(device, device.device_kind, device.platform, getattr(device, "compute_capability", ""))
    print(json.dumps(limits()))


if __name__ == "__main__":
    main()
