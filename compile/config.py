"""`CompileConfig`: what to build, from a TOML file. Imports no jax.

Every key has an effect, an unknown key is an error. Which executables follow from it is arithmetic in `compile.plan`.
A file may be a stranger's, so its size is bounded before it is parsed, and no key of it can name a program to run.
"""

import dataclasses
import importlib.resources
import os
import pathlib
import tomllib
import typing
from typing import Any

from packlight.common.arguments import suggesting
from packlight.common.errors import ConfigError
from packlight.common.files import cache_folder, open_regular
from packlight.common.text import near, reason, shown, shown_path
from packlight.model.spec.state import QUANTIZED

PLATFORMS = ("cpu", "gpu", "tpu")
SHIPPED = (*PLATFORMS, "debug", "mesh8")
CPU_KERNELS = ("auto", "native", "xla", "reference")
DTYPES = ("float32", "bfloat16", "float16")
KV_DTYPES = (*DTYPES, *QUANTIZED)
WEIGHTS = ("resident", "mapped", "streamed")
ONE_CPU = "weights are mapped for one CPU device, not for a GPU, a TPU or a mesh"
ONE_DEVICE = "weights are streamed to a single device, not to a mesh"
DEFAULT_CONTEXT = 4096

# Far above any config, and so low that what tomllib takes the square of (a key of 100,000 parts costs it 40 GB) stays
# below a second: 0.5 s and 20 MB for the worst that was found.
MAX_TEXT, MAX_LINE = 1 << 14, 500  # characters
MAX_BUCKETS = 32  # of a list; executables are their products
MAX_LAUNCH = 1024  # tokens, of which each has its log-probabilities in the result
MAX_VERIFIED = 64  # rows of a step that verifies: beyond, drafts are hardly ever right
DRAFTED = (2, 4)  # rows of steps that verify a draft model's drafts, where nobody says how many
MAX_AHEAD = 1024  # layers, more than a model has
MAX_BYTES = 2**63 - 1  # of a budget
MAX_DEVICES = 1024  # virtual ones on a CPU cost 75 KB and four threads each


def _shown(value: Any) -> str:
    return shown(repr(value))


def _integer(key: str, value: Any, low: int, high: int = 2**31) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise ConfigError(f"config key '{key}' is {_shown(value)}; it is an integer >= {low}, < {high}")


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Devices that share the work. data: groups that share the slots; tensor: devices of a group that share the weights
    (`model.spec.sharding`).
    """

    data: int = 1
    tensor: int = 1

    def __post_init__(self):
        for axis in ("data", "tensor"):
            _integer(f"mesh.{axis}", getattr(self, axis), 1)
        if self.data * self.tensor > MAX_DEVICES:
            raise ConfigError(f"config key 'mesh' means {self.data * self.tensor} devices, more than {MAX_DEVICES}")


@suggesting
@dataclasses.dataclass(frozen=True)
class CompileConfig:
    """What the compile step builds.

    platform: the backend that must be there: cpu, gpu or tpu.
    mesh: how many devices, as a table of the axes `data` and `tensor`; decode_batch is then of all groups together.
    context: tokens a slot holds, prompt and answer together; 0 takes the smaller of the file's and 4096.
    prefill_buckets: tokens per prefill executable, ascending; a longer prompt runs in chunks.
    prefill_rows_while_decoding: the most tokens of a prompt that are read between two tokens of other texts.
    decode_batch: slots that a decode step serves, ascending; the last is the number of slots.
    length_buckets: cached positions a step may look back at, ascending; the whole context is always one.
    tokens_per_launch: tokens that a decode step may give each slot before the host sees them, with the stop test on the
        device; more than one where no logit depends on the tokens between (penalties and grammars do).
    speculate: rows of the steps that verify drafts, ascending: a text's last token and what is guessed to follow it.
        Empty makes no drafts. Layers must be able to go back to an earlier token, which recurrences are not.
    encode_buckets: tokens of each text per encode executable, ascending, which models made for embeddings have; doubled
        up to the context, as texts run whole.
    encode_rows: tokens that an encode step runs together, padding included: so many texts as fit, or one.
    head_rows: rows of logits per pass when all of a prompt's are asked for, or their log-probabilities.
    kv_dtype: the type of cached keys and values: a float's, q8_0, int8 with a float16 scale for every 32 numbers, or
        q4_0, 4 bits of turned heads with as many scales, for which 32 must divide a head's width. Latents (MLA) are
        kept in neither; recurrences and convolutions keep float32 whatever it is.
    activation_dtype: of activations where they meet weights.
    cpu_kernels: kernel path of matrix products and attention on a CPU: native (C++; activations rounded to int8 as
        llama.cpp does), xla, reference, or auto: native where there is a C++ compiler and activations are float32,
        else xla. A GPU runs mosaic_gpu, a TPU mosaic_tpu.
    memory_limit: bytes that the memory plan may take on a device; 0 is what it has free.
    prefix_cache_bytes: host memory at most for beginnings of texts that have lost their slots, and for states that a
        text can go back to; 0 keeps none. It needs a single device.
    weights: resident, they are read into memory; mapped, a file of them in the store's folder stands for memory, which
        the first start writes: on one CPU device; streamed, of that file no more is in memory than the budget lets, or
        of a GPU or TPU's memory no more is taken, and the other layers are in the host's.
    weights_budget: bytes of streamed weights that are in memory at most; 0 is what the machine or the device leaves.
        Layers that do not fit are read, or copied to the device, in every step, experts when they are chosen.
    weights_ahead: on a CPU, streamed layers that are asked for before a step comes to them; 0 reads each when it is
        needed. Elsewhere it is always one.
    store: keep executables on disk; cache_dir: where ("" is packlight/ in the user's cache folder).
    cache_bytes: disk at most for executables and files of mapped weights together, of which those go that were used
        longest ago; 0 is no bound.
    xla_options: passed to XLA for every executable; numbers and booleans, as options of text name files that XLA writes
        and programs that it runs: those are for XLA_FLAGS.
    """

    platform: str = "cpu"
    mesh: MeshShape = MeshShape()
    context: int = 0
    prefill_buckets: tuple[int, ...] = (16, 128, 512)
    prefill_rows_while_decoding: int = 128
    decode_batch: tuple[int, ...] = (1, 4)
    length_buckets: tuple[int, ...] = ()
    tokens_per_launch: int = 1
    speculate: tuple[int, ...] = ()
    encode_buckets: tuple[int, ...] = (32, 64, 128, 256, 512)
    encode_rows: int = 128
    head_rows: int = 32
    kv_dtype: str = "float32"
    activation_dtype: str = "float32"
    cpu_kernels: str = "auto"
    memory_limit: int = 0
    prefix_cache_bytes: int = 0
    weights: str = "resident"
    weights_budget: int = 0
    weights_ahead: int = 2
    store: bool = True
    cache_dir: str = ""
    cache_bytes: int = 0
    xla_options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        for key in ("prefill_buckets", "decode_batch", "encode_buckets", "length_buckets", "speculate"):
            if isinstance(getattr(self, key), list):
                object.__setattr__(self, key, tuple(getattr(self, key)))
        if isinstance(self.mesh, dict) and set(self.mesh) <= {"data", "tensor"}:
            object.__setattr__(self, "mesh", MeshShape(**self.mesh))
        if not isinstance(self.mesh, MeshShape):
            raise ConfigError("config key 'mesh' is a table of data and tensor")
        for key, choices in (
            ("platform", PLATFORMS),
            ("cpu_kernels", CPU_KERNELS),
            ("kv_dtype", KV_DTYPES),
            ("activation_dtype", DTYPES[:2]),
            ("weights", WEIGHTS),
        ):
            if getattr(self, key) not in choices:
                raise ConfigError(
                    f"config key '{key}' is {_shown(getattr(self, key))}; it is one of {', '.join(choices)}"
                )
        for key, low in (("context", 0), ("head_rows", 1), ("encode_rows", 1), ("prefill_rows_while_decoding", 1)):
            _integer(key, getattr(self, key), low)
        _integer("tokens_per_launch", self.tokens_per_launch, 1, MAX_LAUNCH + 1)
        _integer("memory_limit", self.memory_limit, 0, 2**63)
        _integer("prefix_cache_bytes", self.prefix_cache_bytes, 0, 2**63)
        _integer("cache_bytes", self.cache_bytes, 0, 2**63)
        _integer("weights_budget", self.weights_budget, 0, MAX_BYTES + 1)
        _integer("weights_ahead", self.weights_ahead, 0, MAX_AHEAD + 1)
        if reason := self.refusal(self.weights):
            raise ConfigError(f"config key 'weights' is {self.weights!r}; {reason}")
        if self.prefix_cache_bytes and self.mesh != MeshShape():
            raise ConfigError("config key 'prefix_cache_bytes' is for a single device, not for a mesh of several")
        for key in ("prefill_buckets", "decode_batch", "encode_buckets"):
            _ascending(key, getattr(self, key))
            if not getattr(self, key):
                raise ConfigError(f"config key '{key}' is empty")
        _ascending("length_buckets", self.length_buckets)
        _ascending("speculate", self.speculate)
        if self.speculate and not 2 <= self.speculate[0] <= self.speculate[-1] <= MAX_VERIFIED:
            raise ConfigError(
                f"config key 'speculate' holds {list(self.speculate)}; a step has 2 to {MAX_VERIFIED} rows"
            )
        for batch in self.decode_batch:
            if batch % self.mesh.data:
                raise ConfigError(
                    f"config key 'decode_batch' holds {batch}, no multiple of the mesh's {self.mesh.data} data groups"
                )
        if self.cpu_kernels == "native" and self.activation_dtype != "float32":
            raise ConfigError(
                f"config key 'activation_dtype' is {self.activation_dtype!r}; native kernels take float32"
            )
        if self.platform != "cpu" and self.cpu_kernels != "auto":
            raise ConfigError(f"config key 'cpu_kernels' is {self.cpu_kernels!r} but the platform is {self.platform!r}")
        if not isinstance(self.store, bool):
            raise ConfigError(f"config key 'store' is {_shown(self.store)}; it is true or false")
        if not isinstance(self.cache_dir, str):
            raise ConfigError(f"config key 'cache_dir' is {_shown(self.cache_dir)}; it is a path")

    @property
    def on_one_cpu(self) -> bool:
        return self.platform == "cpu" and self.mesh == MeshShape()

    @property
    def pins(self) -> bool:
        """Whether layers are streamed from pinned host memory to a device with memory of its own."""
        return self.weights == "streamed" and self.platform != "cpu"

    def refusal(self, weights: str) -> str:
        """Why weights cannot be so on the config's devices; "" where they can."""
        match weights:
            case "mapped" if not self.on_one_cpu:
                return ONE_CPU
            case "streamed" if self.mesh != MeshShape():
                return ONE_DEVICE
        return ""

    @property
    def slots(self) -> int:
        return self.decode_batch[-1]

    @property
    def kernel_path(self) -> str:
        """The kernel path that a config with definite kernels asks for: one out of `compile.kernels.build_kernels`."""
        if self.platform != "cpu":
            return f"mosaic_{self.platform}"
        assert self.cpu_kernels != "auto"
        return self.cpu_kernels

    @property
    def store_dir(self) -> pathlib.Path:
        """Where executables and mapped weights are stored; may begin with `~`."""
        return pathlib.Path(self.cache_dir) if self.cache_dir else cache_folder()


def _ascending(key: str, values: Any) -> None:
    if not isinstance(values, tuple):
        raise ConfigError(f"config key '{key}' is {_shown(values)}; it is a list of integers")
    if len(values) > MAX_BUCKETS:
        raise ConfigError(f"config key '{key}' holds {len(values)} values, more than {MAX_BUCKETS}")
    for value in values:
        _integer(key, value, 1)
    if list(values) != sorted(set(values)):
        raise ConfigError(f"config key '{key}' is {list(values)}; it ascends without repeats")


def read_config(path: str | os.PathLike[str]) -> CompileConfig:
    """The config in the TOML file at `path`, or the shipped one of that name: cpu, gpu, tpu, debug or mesh8.

    Raises ConfigError naming the file and, where there is one, the key.
    """
    return parse_config(*config_text(path))


def config_text(path: str | os.PathLike) -> tuple[str, str]:
    """The text of a config, named as for `read_config`, and what errors call it. Raises ConfigError."""
    if path in SHIPPED:
        text = (importlib.resources.files("packlight.configs") / f"{path}.toml").read_text(encoding="utf-8")
        return text, f"configs/{path}.toml"
    source = os.fsdecode(path)
    try:
        fd, _ = open_regular(source)
        with open(fd, encoding="utf-8") as file:
            text = file.read(MAX_TEXT + 1)
    except OSError as error:
        hint = near(source, SHIPPED) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"config {shown_path(source)}: {reason(error)}{hint}") from None
    except ValueError:
        raise ConfigError(f"config {shown_path(source)}: not a text file") from None
    return text, source


def default_config(platform: str) -> CompileConfig:
    """The config that ships as `platform` (one of SHIPPED). Raises ConfigError for another name."""
    if platform not in SHIPPED:
        raise ConfigError(f"no config ships for platform {platform!r}; there are: {', '.join(SHIPPED)}")
    return parse_config(*config_text(platform))


def parse_config(text: str, source: str) -> CompileConfig:
    """A config from TOML text; `source` names it in errors."""
    try:
        return _config(_table(text))
    except ConfigError as error:
        raise ConfigError(f"config {shown_path(source)}: ", *error.parts) from None


def given_keys(text: str) -> frozenset[str]:
    """The keys that a config's text gives itself; all others keep their defaults. Raises ConfigError."""
    return frozenset(_table(text))


def _table(text: str) -> dict[str, Any]:
    """TOML text as Python's values, their size bounded."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"longer than the {MAX_TEXT:,} characters allowed")
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise ConfigError(f"line {number} is longer than the {MAX_LINE} characters allowed")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError("nested too deeply") from None
    except ValueError as error:  # a TOMLDecodeError, or Python's own for a date that does not exist
        raise ConfigError(shown(str(error), 200)) from None


def _config(table: dict[str, Any]) -> CompileConfig:
    known = typing.get_type_hints(CompileConfig)
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown key {_shown(key)}{near(key, known)}; known: {', '.join(known)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    options = values.get("xla_options", {})
    if not isinstance(options, dict):
        raise ConfigError("key 'xla_options' is a table of XLA options")
    for name, value in options.items():
        if not isinstance(value, bool | int | float):
            raise ConfigError(
                f"key 'xla_options': {_shown(name)} is {_shown(value)}; it is a number, true or false "
                "(options of text are for the environment's XLA_FLAGS)"
            )
    values["xla_options"] = tuple(sorted(options.items()))
    return CompileConfig(**values)
