"""What llama.cpp's quantizer makes of a file of floats: each tensor's format and error, in `quantize_goldens.json`.

    python tests/goldens/quantize_goldens.py ../shared/models/stories260K-k256-f32.gguf

in an environment with llama-cpp-python and gguf.
"""

import ctypes
import json
import pathlib
import sys
import tempfile

import gguf
import llama_cpp
import numpy as np

TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18}  # llama_ftype


def errors(source: str, quantized: str) -> dict[str, tuple[str, float]]:
    """Tensor -> (format, root-mean-square error), of the tensors that were quantized."""
    exact = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    found = {}
    for tensor in gguf.GGUFReader(quantized).tensors:
        if tensor.tensor_type != exact[tensor.name].tensor_type:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).ravel()
            error = np.sqrt(np.mean((values - exact[tensor.name].data.ravel()).astype(np.float64) ** 2))
            found[tensor.name] = (tensor.tensor_type.name, float(error))
    return found


def main() -> None:
    goldens = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, number in TYPES.items():
            out = str(pathlib.Path(folder) / f"{name}.gguf")
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = number
            code = llama_cpp.llama_model_quantize(sys.argv[1].encode(), out.encode(), ctypes.byref(params))
            assert code == 0, name
            goldens[name] = {
                tensor: [kind, float(f"{e:.6g}")] for tensor, (kind, e) in errors(sys.argv[1], out).items()
            }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(goldens, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
