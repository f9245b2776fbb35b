"""QTensor: a weight matrix as packed ggml blocks, its shape derived from them. Knows layouts of bytes, not products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from quant.errors import UnsupportedError
from quant.formats import format_named


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class QTensor:
    """A matrix (or a stack of them) of shape (..., out, K) whose rows are packed blocks. A pytree with one leaf.

    Build it with `QTensor.of`, which checks these invariants; code that receives a QTensor may rely on them:

    - `qtype` is a key of `quant.formats.FORMATS`, F32, F16 and BF16 included (a block is then one element);
    - in layout "ggml", `blocks` is uint8 of shape (..., out, n_blocks, block_bytes), the bytes exactly as ggml stores
      them, so block b of row r holds weights r, b * elements ... (b + 1) * elements - 1;
    - the block axis is an axis of its own, so slicing or sharding any axis but the last never cuts a block.

    The constructor itself checks nothing: jax rebuilds the dataclass through it with leaves that are no arrays (shape
    structs, shardings, `vmap` axes, None). Equality is identity, as for arrays; the format and the layout are static.
    """

    blocks: jax.Array  # uint8 (..., out, n_blocks, block_bytes)
    qtype: str = dataclasses.field(metadata={"static": True})
    layout: str = dataclasses.field(default="ggml", metadata={"static": True})

    @classmethod
    def of(cls, blocks: jax.Array | np.ndarray, qtype: str) -> "QTensor":
        """Checked construction from ggml bytes: uint8 (..., out, n_blocks, block_bytes).

        Raises UnsupportedError for an unknown format and ValueError for another dtype or shape.
        """
        _check_blocks(blocks, qtype, min_ndim=3)
        return cls(blocks, qtype)  # pyright: ignore[reportArgumentType]  # a numpy array is a leaf like any other

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., out, K). Raises UnsupportedError in a layout other than "ggml", which has its own rule."""
        self._require_ggml()
        *lead, n_blocks, _ = self.blocks.shape
        return (*lead, n_blocks * format_named(self.qtype).elements)

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


def unpack(blocks: jax.Array | np.ndarray, qtype: str) -> jax.Array:
    """The weights in rows of packed blocks: uint8 (..., n_blocks, block_bytes) -> float32 (..., K).

    K is n_blocks * elements. Traceable; equal to ggml's values bit for bit on CPU. Raises UnsupportedError for an
    unknown format and ValueError for another dtype or shape.
    """
    _check_blocks(blocks, qtype, min_ndim=2)
    values = format_named(qtype).unpack(jnp.asarray(blocks))  # (..., n_blocks, elements)
    *lead, n_blocks, elements = values.shape
    return values.reshape(*lead, n_blocks * elements)  # explicit, because -1 is ambiguous when an axis is 0


def gather_rows(w: QTensor, ids: jax.Array) -> jax.Array:
    """Rows of one matrix, the embedding look-up: int32 (...) -> float32 (..., K).

    The packed rows are gathered and only those are unpacked. Ids are clipped to 0 .. out - 1, so that a padded slot's
    id reads some row and never NaN; callers check ids that come from a user. Raises ValueError for a stack of matrices.
    """
    w._require_ggml()
    if w.blocks.ndim != 3:
        raise ValueError(f"gather_rows wants one matrix (out, n_blocks, bytes), got blocks {w.blocks.shape}")
    rows = jnp.take(w.blocks, ids, axis=0, mode="clip")  # (..., n_blocks, block_bytes)
    return unpack(rows, w.qtype)


def _check_blocks(blocks: jax.Array | np.ndarray, qtype: str, min_ndim: int) -> None:
    fmt = format_named(qtype)
    if blocks.dtype != np.uint8 or blocks.ndim < min_ndim or blocks.shape[-1] != fmt.bytes:
        want = "..., out, n_blocks" if min_ndim == 3 else "..., n_blocks"
        raise ValueError(f"{qtype}: want blocks uint8 ({want}, {fmt.bytes}), got {blocks.dtype} {blocks.shape}")
