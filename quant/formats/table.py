"""The table of ggml block formats: names, type ids, elements and bytes per block. Imports no jax.

It knows sizes; what the bytes of a block mean is in the family module that `Format.unpack` imports on first use.
"""

import dataclasses
import importlib
from collections.abc import Callable
from functools import cached_property

from packlight.common.errors import UnsupportedError
from packlight.common.text import near


@dataclasses.dataclass(frozen=True)
class Format:
    """One ggml tensor type: `bytes` hold `elements` consecutive weights of a row.

    Source: `ggml-common.h` (structs), `ggml.h` (type ids); checked against `gguf.GGML_QUANT_SIZES` under test.
    """

    name: str
    type_id: int
    elements: int
    bytes: int
    family: str

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.elements

    @cached_property
    def unpack(self) -> Callable:
        """Traceable function: uint8 (..., bytes) -> float32 (..., elements), equal to ggml's values bit for bit."""
        return getattr(importlib.import_module(f"packlight.quant.formats.{self.family}"), f"unpack_{self.name.lower()}")


FORMATS: dict[str, Format] = {
    name: Format(name, type_id, elements, size, family)
    for name, type_id, elements, size, family in (
        ("F32", 0, 1, 4, "floats"),
        ("F16", 1, 1, 2, "floats"),
        ("BF16", 30, 1, 2, "floats"),
        ("Q1_0", 41, 128, 18, "legacy"),
        ("Q2_0", 42, 64, 18, "legacy"),
        ("Q4_0", 2, 32, 18, "legacy"),
        ("Q4_1", 3, 32, 20, "legacy"),
        ("Q5_0", 6, 32, 22, "legacy"),
        ("Q5_1", 7, 32, 24, "legacy"),
        ("Q8_0", 8, 32, 34, "legacy"),
        ("Q2_K", 10, 256, 84, "kquants"),
        ("Q3_K", 11, 256, 110, "kquants"),
        ("Q4_K", 12, 256, 144, "kquants"),
        ("Q5_K", 13, 256, 176, "kquants"),
        ("Q6_K", 14, 256, 210, "kquants"),
        ("IQ2_XXS", 16, 256, 66, "iquants"),
        ("IQ2_XS", 17, 256, 74, "iquants"),
        ("IQ2_S", 22, 256, 82, "iquants"),
        ("IQ3_XXS", 18, 256, 98, "iquants"),
        ("IQ3_S", 21, 256, 110, "iquants"),
        ("IQ1_S", 19, 256, 50, "iquants"),
        ("IQ1_M", 29, 256, 56, "iquants"),
        ("IQ4_NL", 20, 32, 18, "iquants"),
        ("IQ4_XS", 23, 256, 136, "iquants"),
        ("TQ1_0", 34, 256, 54, "ternary"),
        ("TQ2_0", 35, 256, 66, "ternary"),
        ("MXFP4", 39, 32, 17, "fp4"),
        ("NVFP4", 40, 64, 36, "fp4"),
    )
}
BY_TYPE_ID: dict[int, Format] = {f.type_id: f for f in FORMATS.values()}


def format_named(name: str) -> Format:
    """The format called `name`. Raises UnsupportedError, listing every known name, when there is none."""
    try:
        return FORMATS[name]
    except KeyError:
        hint = near(str(name), FORMATS)
        raise UnsupportedError(f"unknown format {name!r}{hint}; supported: {', '.join(FORMATS)}") from None
