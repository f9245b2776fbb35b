"""Test setup: 8 fake CPU devices, strict JAX promotion rules, and the shared fixtures' folder."""

import pathlib

import jax
import pytest

jax.config.update("jax_platforms", "cpu")  # what the tolerances and exactness are derived for
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


def shared_path(*parts: str) -> pathlib.Path:
    """A fixture under ../shared; skips the calling test, with the reason, where the folder is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"fixture {path} is absent")
    return path
