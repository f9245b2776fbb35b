"""Files of weights on a disk whose layers and experts are brought, and what of them the system has in memory."""

import ctypes
import mmap
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from packlight.compile.config import CompileConfig
from packlight.model.weights.mapfile import PAGE, Arrangement
from packlight.model.weights.mapped import open_stream
from packlight.quant.kernels import native_ops

SMALL = {"context": 64, "prefill_buckets": (16,), "decode_batch": (1,), "head_rows": 1, "cpu_kernels": "native"}
FAILED = (jax.errors.JaxRuntimeError, ValueError)  # which of them, differs by how a step is called


def disk_bytes():
    """What this process has had read from disks."""
    return int(re.search(r"^read_bytes: (\d+)", pathlib.Path("/proc/self/io").read_text(), re.MULTILINE)[1])


def cached(memory):
    """Which pages of mapped memory the system has in its cache, whoever reads them: bool (pages,)."""
    seen = (ctypes.c_ubyte * -(-memory.nbytes // PAGE))()
    address = ctypes.c_void_p(memory.ctypes.data)
    assert ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(memory.nbytes), seen) == 0
    return np.frombuffer(seen, np.uint8) & 1 == 1


def streamed(config, **keys):
    """SMALL with streamed weights and the same store."""
    return CompileConfig(**{**SMALL, "cache_dir": config.cache_dir, "weights": "streamed", **keys})


class WeightsFile:
    """A file of the buffers of a model, on a disk and not in memory, and its stream."""

    def __init__(self, path, buffers, where):
        arranged, self.where, self.path = Arrangement.of(buffers), where, path
        content = np.random.default_rng(0).integers(0, 256, arranged.nbytes, np.uint8)
        with open(path, "w+b") as file:
            for record in arranged.records:
                file.seek(record.offset)
                file.write(content[record.offset : record.offset + record.nbytes])
            file.flush()
            os.fsync(file.fileno())
            mapped = mmap.mmap(file.fileno(), arranged.nbytes, access=mmap.ACCESS_READ)
            mapped.madvise(mmap.MADV_HUGEPAGE)
            self.memory = np.frombuffer(mapped, np.uint8)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self.stream = open_stream(file.fileno(), self.memory, 0, where)

    def visit(self, layer):
        """As a step does that comes to a layer."""
        x = jnp.arange(5, dtype=jnp.float32)
        y = native_ops.advance(x, jnp.int32(layer), jnp.int32(self.stream.number))
        np.testing.assert_array_equal(y, x)

    def choose(self, layer, chosen):
        """As a step does whose rows have chosen experts, int32 (M, X)."""
        y = native_ops.bring_experts(jnp.asarray(chosen), jnp.int32(layer), jnp.int32(self.stream.number))
        np.testing.assert_array_equal(y, chosen)
