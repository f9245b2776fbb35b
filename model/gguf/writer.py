"""Writes a GGUF file like another one: its keys in their types, its tensors in formats that the caller chooses.

It knows the container and nothing of models. The writing is gguf-py's, which may read the source too, because
`open_gguf` has found it sound. A split source becomes one file.
"""

import types
from collections.abc import Iterable, Mapping
from typing import Any

import gguf
import numpy as np

from packlight.common.errors import GGUFError
from packlight.common.text import reason, shown, shown_path
from packlight.model.gguf.reader import GGUFFile, TensorInfo
from packlight.quant.formats.table import FORMATS

OF_THE_FILE = ("GGUF.", "split.")  # fields that tell of the container, not of the model


class _Bytes(np.ndarray):
    """Bytes whose writing fails with the system's words: numpy's says only how many were written."""

    def tofile(self, fid: Any, *_: Any, **__: Any) -> None:
        fid.write(np.ascontiguousarray(self).data)


def write_like(
    source: GGUFFile,
    path: str,
    formats: Mapping[str, str],
    packed: Iterable[np.ndarray],
    file_type: gguf.LlamaFileType | None = None,
    numbers: Mapping[str, int] = types.MappingProxyType({}),
) -> None:
    """Writes the tensors of `source` in their formats of `formats`, tensor name -> format name, to `path`.

    packed: the bytes of each tensor, uint8 of the shape `byte_shape`, in the order of the file. They are taken one at a
        time, so that an iterator can make them when they are written.
    file_type: the value of "general.file_type"; None leaves what the source has.
    numbers: other values of some keys.
    Raises GGUFError when the source cannot be read, and OSError.
    """
    writer = gguf.GGUFWriter(path, str(source.metadata["general.architecture"]))
    _add_keys(writer, source, file_type, numbers)
    for info in source.tensors.values():
        shape = byte_shape(info, formats[info.name])
        nbytes = int(np.prod(shape, dtype=np.int64))
        qtype = gguf.GGMLQuantizationType[formats[info.name]]
        writer.add_tensor_info(info.name, shape, np.dtype(np.uint8), nbytes, qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for blocks in packed:
        writer.write_tensor_data(blocks.view(_Bytes))
    writer.close()


def byte_shape(info: TensorInfo, name: str) -> tuple[int, ...]:
    """The shape of a tensor's bytes in format `name`: its own with the bytes of a row in place of the weights."""
    fmt = FORMATS[name]
    return (*info.shape[:-1], info.shape[-1] // fmt.elements * fmt.bytes)


def _fields(path: str) -> Iterable[gguf.ReaderField]:
    """The keys of a file with the bytes of their values. Raises GGUFError."""
    try:
        return gguf.GGUFReader(path).fields.values()
    except OSError as error:
        raise GGUFError(f"{shown_path(path)}: cannot read: {reason(error)}") from None


def _add_keys(
    writer: gguf.GGUFWriter, source: GGUFFile, file_type: gguf.LlamaFileType | None, numbers: Mapping[str, int]
) -> None:
    for field in _fields(source.path):
        if field.name == "general.alignment":
            writer.add_custom_alignment(source.alignment)  # as a plain key it would not move the tensors
            continue
        ours = field.name == "general.file_type" and file_type is not None
        if ours or field.name.startswith(OF_THE_FILE) or field.name == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY and not field.data:
            raise GGUFError(
                f"{shown_path(source.path)}: key '{shown(field.name)}' is an empty array, which gguf cannot write"
            )
        nested = field.types[1] if len(field.types) > 1 else None
        text = gguf.GGUFValueType.STRING in field.types
        values = [field.parts[at].tobytes() for at in field.data] if text else field.contents()
        if nested is None and text:
            (values,) = values
        writer.add_key_value(field.name, numbers.get(field.name, values), field.types[0], nested)
    if file_type is not None:
        writer.add_file_type(file_type)
    if "general.quantization_version" not in source.metadata:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
