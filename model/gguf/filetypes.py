"""What `general.file_type` says of a file: the recipe that it was quantized by. Its numbers are llama.cpp's."""

from collections.abc import Mapping
from typing import Any

# Source: llama.cpp include/llama.h, `llama_ftype`.
FILE_TYPES: Mapping[int, str] = {
    **dict(enumerate(("F32", "F16", "Q4_0", "Q4_1"))),
    **dict(enumerate(("Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M"), 7)),
    **dict(enumerate(("Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS"), 16)),
    **dict(enumerate(("IQ1_S", "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16"), 24)),
    **dict(enumerate(("TQ1_0", "TQ2_0", "MXFP4_MOE", "NVFP4", "Q1_0"), 36)),
}


def file_type(metadata: Mapping[str, Any]) -> str | None:
    """The name of a file's recipe, or None where it has none or an unknown one."""
    number = metadata.get("general.file_type")
    return FILE_TYPES.get(number) if isinstance(number, int) else None
