"""QTensor: a weight matrix as packed ggml blocks, its shape derived from them. Knows layouts of bytes, not products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from packlight.common.errors import UnsupportedError
from packlight.quant.formats.table import format_named
from packlight.quant.layouts import FIELDS, GROUP, LANES, LAYOUTS, blocks_shape, superblock_order


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QTensor:
    """A matrix (or a stack of them) of shape (..., out, K) whose rows are packed blocks. A pytree with one leaf.

    Code that receives a QTensor may rely on these invariants:

    - `qtype` is a key of `quant.formats.table.FORMATS`, F32, F16 and BF16 included (a block is then one element);
    - in layout "ggml", `blocks` is uint8 of shape (..., out, n_blocks, block_bytes), the bytes exactly as ggml stores
      them, so block b of row r holds weights r, b * elements ... (b + 1) * elements - 1;
    - in another layout its last three axes are those of `quant.layouts.blocks_shape`, and `rows` (out) and `width` (K)
      say what part of it is no padding; in layout "ggml" they are None;
    - the block axis is an axis of its own, so that cutting along it or along rows never cuts a block.

    The constructor checks nothing: jax rebuilds the dataclass through it with leaves that are no arrays (shape structs,
    shardings, `vmap` axes, None). `QTensor.of` checks. Where a mesh's devices share the blocks, the invariants hold for
    each device's part, which is what traced code sees; code that joins the parts checks each with `check_blocks`.
    Equality is identity, as for arrays; the format and the layout are static.
    """

    blocks: jax.Array  # uint8 (..., out, n_blocks, block_bytes)
    qtype: str = dataclasses.field(metadata={"static": True})
    layout: str = dataclasses.field(default="ggml", metadata={"static": True})
    rows: int | None = dataclasses.field(default=None, metadata={"static": True})
    width: int | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def of(
        cls,
        blocks: jax.Array | np.ndarray,
        qtype: str,
        layout: str = "ggml",
        rows: int | None = None,
        width: int | None = None,
    ) -> "QTensor":
        """Checked construction from packed bytes: uint8 (..., and the three axes of the layout).

        rows, width: `out` and K, which layouts other than ggml's do not say. Raises UnsupportedError for an unknown
        format or layout, ValueError for another dtype or shape.
        """
        if layout == "ggml":
            rows = width = None
        check_blocks(blocks, qtype, layout, rows, width)
        return cls(blocks, qtype, layout, rows, width)  # pyright: ignore[reportArgumentType]  # a numpy leaf

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., out, K)."""
        *lead, out, n_blocks, _ = self.blocks.shape
        if self.rows is not None and self.width is not None:
            return (*lead, self.rows, self.width)
        return (*lead, out, n_blocks * format_named(self.qtype).elements)

    @property
    def nbytes(self) -> int:
        """Bytes the packed blocks occupy."""
        return self.blocks.size * self.blocks.dtype.itemsize

    def unpack(self) -> jax.Array:
        """The whole matrix as float32 (..., out, K); for tests and small tensors."""
        self._require_ggml()
        return unpack(self.blocks, self.qtype)

    def _require_ggml(self) -> None:
        if self.layout != "ggml":
            raise UnsupportedError(f"a {self.qtype} QTensor in layout {self.layout!r}, where 'ggml' is needed")


def check_blocks(
    blocks: jax.Array | np.ndarray,
    qtype: str,
    layout: str = "ggml",
    rows: int | None = None,
    width: int | None = None,
) -> None:
    """Refuses packed bytes that are no matrices, or no `rows` x `width` ones, of a format in a layout.

    In layout "ggml" the blocks alone say how many weights they hold, and rows and width may be None. Raises
    UnsupportedError for an unknown format or layout, ValueError for another dtype or shape.
    """
    if layout not in LAYOUTS:
        raise UnsupportedError(f"unknown layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    fmt = format_named(qtype)
    if layout == "ggml":
        _check_bytes(blocks, qtype, min_ndim=3)
        if rows is None or width is None:
            return
    if rows is None or width is None or blocks.ndim < 3 or blocks.dtype != np.uint8:
        raise ValueError(f"{qtype} in layout {layout}: {blocks.dtype} {blocks.shape} for {rows} x {width} weights")
    if blocks.shape[-3:] != blocks_shape(rows, width // fmt.elements, fmt.bytes, layout, qtype):
        raise ValueError(f"{qtype} in layout {layout}: blocks {blocks.shape} do not hold {rows} x {width} weights")


def unpack(blocks: jax.Array | np.ndarray, qtype: str) -> jax.Array:
    """The weights in rows of packed blocks: uint8 (..., n_blocks, block_bytes) -> float32 (..., K).

    K is n_blocks * elements. Traceable; equal to ggml's values bit for bit on CPU. Raises UnsupportedError for an
    unknown format and ValueError for another dtype or shape.
    """
    _check_bytes(blocks, qtype, min_ndim=2)
    values = format_named(qtype).unpack(jnp.asarray(blocks))  # (..., n_blocks, elements)
    *lead, n_blocks, elements = values.shape
    return values.reshape(*lead, n_blocks * elements)  # explicit, because -1 is ambiguous when an axis is 0


def gather_rows(w: QTensor, ids: jax.Array) -> jax.Array:
    """Rows of one matrix, the embedding look-up: int32 (...) -> float32 (..., K).

    The packed rows are gathered and only those are unpacked. Ids are clipped to 0 .. out - 1, so that a padded slot's
    id reads some row and never NaN; callers check ids that come from a user. Raises ValueError for a stack of matrices.
    """
    if w.blocks.ndim != 3:
        raise ValueError(f"gather_rows wants one matrix (out, n_blocks, bytes), got blocks {w.blocks.shape}")
    ids = jnp.clip(ids, 0, w.shape[0] - 1)
    if w.layout == "ggml":
        return unpack(jnp.take(w.blocks, ids, axis=0, mode="clip"), w.qtype)
    if w.layout in LANES:
        return unpack(_take_lanes(w.blocks, w.qtype, LANES[w.layout], ids), w.qtype)
    return unpack(_take_superblocks(w, ids), w.qtype)


def _take_lanes(packed: jax.Array, qtype: str, lanes: int, ids: jax.Array) -> jax.Array:
    """Rows of an interleaved matrix in ggml's layout: int32 (...) -> uint8 (..., N, bytes)."""
    groups = jnp.take(packed, ids // lanes, axis=0, mode="clip")  # (..., N, lanes * bytes)
    lane = (ids % lanes)[..., None, None, None, None]
    fields = []
    for offset, length, unit in FIELDS[qtype]:
        field = groups[..., lanes * offset : lanes * (offset + length)]
        field = field.reshape(*groups.shape[:-1], length // unit, lanes, unit)
        taken = jnp.take_along_axis(field, lane, axis=-2)  # (..., N, length / unit, 1, unit)
        fields.append(taken.reshape(*groups.shape[:-1], length))
    return jnp.concatenate(fields, axis=-1)


def _take_superblocks(w: QTensor, ids: jax.Array) -> jax.Array:
    """Rows of a matrix in a Mosaic layout in ggml's: int32 (...) -> uint8 (..., N, bytes)."""
    if w.layout == "columns":
        taken = jnp.moveaxis(jnp.take(w.blocks, ids, axis=2, mode="clip"), (0, 1), (-2, -1))  # (..., S, bytes)
    else:
        groups, count, _ = w.blocks.shape
        words = w.blocks.reshape(groups, count, -1, GROUP, 4)
        taken = words[ids // GROUP, :, :, ids % GROUP].reshape(*ids.shape, count, -1)
    file_order = np.argsort(superblock_order(w.qtype))
    fmt = format_named(w.qtype)
    blocks = jnp.take(taken, file_order, axis=-1).reshape(*ids.shape, -1, fmt.bytes)
    return blocks[..., : w.shape[-1] // fmt.elements, :]


def _check_bytes(blocks: jax.Array | np.ndarray, qtype: str, min_ndim: int) -> None:
    size = format_named(qtype).bytes
    if blocks.dtype != np.uint8 or blocks.ndim < min_ndim or blocks.shape[-1] != size:
        want = "..., out, n_blocks" if min_ndim == 3 else "..., n_blocks"
        raise ValueError(f"{qtype}: want blocks uint8 ({want}, {size}), got {blocks.dtype} {blocks.shape}")
