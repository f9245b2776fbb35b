"""Reads compiled programs: which packed weights an executable unpacks whole into memory, and its largest array there.

`quant.matmul` traces every unpacking of a product under a scope that names the matrix. An instruction that writes
memory (one outside of fusions) under such a scope, with at least as many elements as that matrix has weights, is a
weight that was materialized. A tile of its rows is smaller; where unpacking is fused into the product nothing is.
Knows XLA's text and no models.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from packlight.quant.matmul import UNPACK_SCOPE

_FUSED = re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_RESULT = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*)$")
_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "u8": 1, "s8": 1, "pred": 1}
_ARRAY = re.compile(rf"\b({'|'.join(_BYTES)})\[([\d,]*)\](?:\{{([^}}]*)\}})?")
_SCOPE = re.compile(UNPACK_SCOPE.format(qtype=r"(\w+?)", out=r"(\d+)", width=r"(\d+)"))
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_ON_CHIP = re.compile(r"S\([1-9]")  # a layout's memory space: 0 is main memory
_TILE = re.compile(r"T\(([\d,]+)\)")
_IN_PLACE = re.compile(r"dynamic[_-]update[_-]slice")
_VIEWS = ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "opt-barrier")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in main memory that an instruction writes. shape: as XLA's text has it. bytes: with a TPU's padding."""

    op_name: str
    opcode: str
    shape: str
    elements: int
    item_bytes: int
    bytes: int


def materialized(text: str) -> dict[tuple[str, int, int, str], int]:
    """(format, out, in, op name) -> bytes of the largest array that holds all of such a matrix, unpacked.

    text: a compiled executable's `as_text()`. The op name is the instruction's, scopes of the model included.
    """
    found: dict[tuple[str, int, int, str], int] = {}
    for array in _written(text):
        scope = _SCOPE.search(array.op_name)
        if scope is None or array.item_bytes == 1:  # a byte a weight is no more than many formats pack into
            continue
        qtype, out, width = scope[1], int(scope[2]), int(scope[3])
        if array.elements >= out * width:
            key = (qtype, out, width, array.op_name)
            found[key] = max(found.get(key, 0), array.elements * array.item_bytes)
    return found


def largest(text: str, most: int) -> Array | None:
    """The largest array of at most `most` bytes that the program writes to main memory, or None.

    most: the executable's scratch. What updates an array in place, as the cache is, is left out.
    """
    fresh = (a for a in _written(text) if a.bytes <= most and not _IN_PLACE.search(f"{a.op_name} {a.opcode}"))
    return max(fresh, key=lambda array: array.bytes, default=None)


def _written(text: str) -> Iterator[Array]:
    """Every array in main memory that is written by an instruction outside of fusions."""
    fused = set(_FUSED.findall(text))
    inside = False
    for line in text.splitlines():
        if (computation := _COMPUTATION.match(line)) and " = " not in line.split("{")[0]:
            inside = computation[1] in fused
        elif not inside and (result := _RESULT.match(line)):
            kind, opcode = _split(result[1])
            name = _OP_NAME.search(line)
            for dtype, dims, layout in () if opcode in _VIEWS else _ARRAY.findall(kind):
                if not _ON_CHIP.search(layout):
                    sizes = [int(d) for d in dims.split(",") if d]
                    size = _BYTES[dtype] * math.prod(_tiled(sizes, layout))
                    shape, count = f"{dtype}[{dims}]", math.prod(sizes)
                    yield Array(name[1] if name else "", opcode, shape, count, _BYTES[dtype], size)


def _tiled(sizes: list[int], layout: str) -> list[int]:
    """Sizes in memory: "2,1,0:T(8,128)" pads axis 2, the minor-most, to a multiple of 128 and axis 1 to one of 8."""
    tile = _TILE.search(layout)
    if tile is None:
        return sizes
    padded = list(sizes)
    order = [int(axis) for axis in layout.split(":")[0].split(",") if axis]
    for axis, by in zip(order, reversed(tile[1].split(",")), strict=False):
        padded[axis] = -(-padded[axis] // int(by)) * int(by)
    return padded


def _split(result: str) -> tuple[str, str]:
    """Type and opcode of `f32[2,3]{1,0} fusion(...` or `(f32[2], /*index=1*/s32[]) while(...`."""
    depth = 0
    for at, letter in enumerate(result):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0:
            return result[:at], result[at + 1 :].partition("(")[0]
    return result, ""
