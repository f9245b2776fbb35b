"""A file and a config that fit each other: everything that is known, checked and planned before a weight is read."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import itertools
import numbers
import os
import sys
from typing import TYPE_CHECKING, Literal, Unpack

from packlight.arguments import rotated
from packlight.common import pages
from packlight.common.errors import Argument, ConfigError, MemoryLimitError
from packlight.common.text import shown, shown_path
from packlight.compile.config import (
    DRAFTED,
    KV_DTYPES,
    MAX_AHEAD,
    MAX_BYTES,
    MAX_VERIFIED,
    WEIGHTS,
    CompileConfig,
    MeshShape,
    default_config,
    read_config,
)
from packlight.compile.kernels import KernelPlan, build_kernels
from packlight.compile.memory import (
    Limit,
    MemoryPlan,
    config_limit,
    device_limit,
    host_limit,
    plan_memory,
    prefix_budget,
)
from packlight.compile.plan import Plan, plan_of
from packlight.drafting import Draft, draft_config, open_draft
from packlight.model.gguf.reader import GGUFFile, open_gguf
from packlight.model.spec.cache import check_kv_dtype
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.rope_changes import Rope, RopeChanges
from packlight.model.spec.sharding import Split, make_split
from packlight.model.spec.stretching import stretched, too_long
from packlight.model.spec.weights import check, formats, read_tensors, used_weights
from packlight.model.text.chat import rerank_template
from packlight.model.text.tokenizer import Tokenizer
from packlight.model.weights.load import matrix_buffers
from packlight.model.weights.pinned import BUFFERS, Pinned, check_pinned, plan_pinned
from packlight.model.weights.residence import Cut, Residence, plan_residence
from packlight.prompts import Prompts
from packlight.sources.find import find

if TYPE_CHECKING:
    from packlight.compile.steps import Steps
    from packlight.model.weights.placement import Placement

# llama.cpp's names beside the config's
KVType = Literal["f32", "f16", "bf16", "float32", "float16", "bfloat16", "q8_0", "q4_0"]
Weights = Literal["resident", "mapped", "streamed"]
KV_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"} | {name: name for name in KV_DTYPES}


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a caller wants otherwise than the config says; None leaves it to the config."""

    context: int | None = None  # tokens that a slot may hold
    slots: int | None = None  # sequences at a time
    kv_type: KVType | None = None  # of cached keys and values
    prefix_cache: int | None = None  # bytes of host memory for beginnings of texts without a slot
    speculate: int | None = None  # drafts that a step verifies at most
    weights: Weights | None = None  # read into memory, mapped or streamed
    weights_budget: int | None = None  # bytes of streamed weights in memory at most
    weights_ahead: int | None = None  # streamed layers that are asked for before a step comes to them
    drafted: str | None = None  # the draft model, as the caller names it

    def __post_init__(self):
        """Raises ConfigError for a value that suits no model."""
        for name, least, most in (
            ("context", 0, None),
            ("slots", 1, None),
            ("prefix_cache", 0, None),
            ("speculate", 0, None),
            ("weights_budget", 0, MAX_BYTES),
            ("weights_ahead", 0, MAX_AHEAD),
        ):
            count = getattr(self, name)
            if count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < least:
                raise ConfigError(Argument(name, shown(repr(count))), f": it is an integer of at least {least}")
            count = int(count)  # numpy's too
            if most is not None and count > most:
                raise ConfigError(Argument(name, count), f": at most {most}")
            object.__setattr__(self, name, count)
        if self.kv_type is not None and not (isinstance(self.kv_type, str) and self.kv_type in KV_TYPES):
            raise ConfigError(Argument("kv_type", shown(str(self.kv_type))), f": it is one of {', '.join(KV_TYPES)}")
        if self.weights not in (None, *WEIGHTS):
            raise ConfigError(Argument("weights", shown(str(self.weights))), f": it is one of {', '.join(WEIGHTS)}")

        if self.drafted is not None and self.speculate == 0:
            raise ConfigError(Argument("draft_model", self.drafted), " has no use: ", Argument("speculate", 0))

    def check(self, model: ModelConfig) -> None:
        """Raises ConfigError for more context than the model has, and for a cache of a type that it cannot have."""
        if self.context is not None and self.context > model.longest_context:
            raise ConfigError(Argument("context", self.context), ": ", *too_long(model, self.context))
        if self.kv_type is not None and (reason := check_kv_dtype(model, KV_TYPES[self.kv_type])):
            raise ConfigError(Argument("kv_type", self.kv_type), f": {reason}")

    def applied(self, config: CompileConfig) -> CompileConfig:
        """The config with the changes. Raises ConfigError for slots that do not suit its mesh."""
        if self.context is not None:
            config = dataclasses.replace(config, context=self.context)
        if self.slots is not None:
            if self.slots % config.mesh.data:
                groups = f"no multiple of the mesh's {config.mesh.data} data groups"
                raise ConfigError(Argument("slots", self.slots), f": {groups}")
            fewer = (batch for batch in config.decode_batch if batch < self.slots)
            config = dataclasses.replace(config, decode_batch=(*fewer, self.slots))
        if self.prefix_cache is not None:
            config = dataclasses.replace(config, prefix_cache_bytes=self.prefix_cache)
        if self.kv_type is not None:
            config = dataclasses.replace(config, kv_dtype=KV_TYPES[self.kv_type])
        if self.speculate is not None:
            if self.speculate >= MAX_VERIFIED:
                raise ConfigError(Argument("speculate", self.speculate), f": at most {MAX_VERIFIED - 1} drafts a step")
            doubled = itertools.takewhile(lambda rows: rows <= self.speculate, (2**n for n in itertools.count(1)))
            rows = (*doubled, 1 + self.speculate) if self.speculate else ()
            config = dataclasses.replace(config, speculate=rows)
        if self.weights is not None:
            if reason := config.refusal(self.weights):
                raise ConfigError(Argument("weights", self.weights), f": {reason}")
            config = dataclasses.replace(config, weights=self.weights)
        for name in ("weights_budget", "weights_ahead"):
            if (count := getattr(self, name)) is None:
                continue
            if config.weights != "streamed":
                streamed = Argument("weights", "streamed")
                raise ConfigError(Argument(name, count), " is of streamed weights only: ", streamed, " is missing")
            config = dataclasses.replace(config, **{name: count})
        if self.drafted is not None:
            if config.mesh != MeshShape():
                raise ConfigError(Argument("draft_model", self.drafted), ": it runs on one device, not on a mesh")
            config = dataclasses.replace(config, speculate=config.speculate or DRAFTED)
        return config


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A file and a config that fit each other, with the plan and the memory that follow from them.

    No weight is read. No jax is imported, except where `config` and `plan` must know the default platform because no
    config was named.
    """

    file: GGUFFile
    model: ModelConfig  # what the file says of its hyperparameters, and callers of its rotation
    tokenizer: Tokenizer
    named: CompileConfig | None  # the caller's config; None stands for the one that ships for jax's default platform
    changes: Changes = Changes()  # of the config
    planned: Plan | None = None  # replaces the plan that the config asks for
    draft: Draft | None = None  # the file that makes drafts
    limit: Limit | None = None  # what a device that is not here leaves

    @functools.cached_property
    def _built(self) -> tuple[CompileConfig, str | None]:
        return build_kernels(self.changes.applied(self.named or default_config(default_platform())))

    @property
    def config(self) -> CompileConfig:
        """The config with definite kernels; to know them, the first use builds the native library where it may run."""
        return self._built[0]

    @property
    def warnings(self) -> list[str]:
        """What the user should know: keys of the architecture that nothing reads, kernel choices that fell back to
        something slower, a cache that takes all of its memory from the start.
        """
        unread = ", ".join(self.model.unread)
        refusal = pages.refusal() if self.config.platform == "cpu" else None
        whole = refusal and f"the whole cache takes memory from the start, used or not: {refusal}"
        return [
            *([f"not read from the file: {shown(unread)}"] if unread else []),
            *filter(None, (self._built[1], whole)),
        ]

    @functools.cached_property
    def weights_bytes(self) -> int:
        """Bytes of the tensors that the model reads."""
        return sum(info.nbytes for info in read_tensors(self.file, self.model))

    @functools.cached_property
    def kernels(self) -> KernelPlan:
        """Which kernel reads every tensor, and which computes attention."""
        return KernelPlan.of(self.config, self.model, formats(self.file))

    @functools.cached_property
    def plan(self) -> Plan:
        return self.planned or plan_of(self.config, self.model)

    @functools.cached_property
    def companion(self) -> "Prepared | None":
        """The draft model, prepared for this plan. Raises ConfigError where it cannot go back to an earlier token."""
        if self.draft is None:
            return None
        config = draft_config(self.draft, self.config, self.plan)
        planned = dataclasses.replace(plan_of(config, self.draft.model), scores=False)
        return Prepared(*self.draft, config, planned=planned)

    @functools.cached_property
    def split(self) -> Split:
        """How the devices of the config's mesh share the model."""
        kinds, mesh = formats(self.file), self.config.mesh
        return make_split(self.model, used_weights(self.model, kinds), kinds, mesh.data, mesh.tensor)

    @functools.cached_property
    def context(self) -> int:
        """Tokens that a slot will hold. Every config that ships leaves them to the file, so none has to be chosen."""
        config = self.changes.applied(self.named or default_config("cpu"))
        plan = plan_of(config, self.model)
        if self.draft is not None:
            draft_config(self.draft, config, plan)
        return plan.context

    @functools.cached_property
    def prompts(self) -> Prompts:
        """Checks what callers ask of the model."""
        return Prompts(self.tokenizer, self.model, self.context, rerank_template(self.file.metadata))

    @functools.cached_property
    def memory(self) -> MemoryPlan:
        """Bytes of weights, cache and process on each device, and of a draft model; scratch is not known before
        executables are. Raises as `residence` does.
        """
        return dataclasses.replace(self._memory, residence=self.residence)

    @functools.cached_property
    def _memory(self) -> MemoryPlan:
        """`memory` without streamed weights."""
        own = plan_memory(self.file, self.model, self.kernels.layouts, self.split, self.plan, self.config)
        if self.companion is None:
            return own
        draft = self.companion.memory
        return dataclasses.replace(own, mapped=own.mapped + draft.mapped, draft=draft.weights + draft.cache)

    @functools.cached_property
    def residence(self) -> Residence | Pinned | None:
        """Which layers stay in memory, where weights are streamed. Raises MemoryLimitError for a budget that is too
        small, ConfigError for what cannot be streamed.
        """
        config = self.config
        if config.weights != "streamed":
            return None
        if config.pins:
            return self._pinned()
        if self.kernels.path != "native":
            raise ConfigError(Argument("weights", "streamed"), ": layers are streamed with native kernels only")
        buffers = matrix_buffers(self.file, self.model, self.kernels.layouts)
        budget, beside, whose = self._weights_budget()
        cut = Cut.of(buffers, self.model.block_count, self.model.expert_used_count)
        return plan_residence(cut, budget, config.weights_ahead, whose, self.plan.most_rows, beside)

    def _pinned(self) -> Pinned:
        """`residence` on a GPU or TPU. Beside what is copied a step's scratch takes part of what a budget leaves."""
        check_pinned(self.model, formats(self.file), self.kernels.layouts)
        buffers = matrix_buffers(self.file, self.model, self.kernels.layouts)
        budget, beside, whose = self._weights_budget()
        return plan_pinned(buffers, self.model.block_count, BUFFERS[self.config.platform], budget, whose, beside)

    def _weights_budget(self) -> tuple[int, int, tuple[str | Argument, ...]]:
        """Bytes for streamed weights, how many of them vectors take, and how a message on whose budget it is begins."""
        if budget := self.config.weights_budget:
            argument = Argument("weights_budget", budget)
            whose = argument if self.changes.weights_budget is not None else "config key 'weights_budget'"
            return budget, self._memory.weights, (whose, " allows")
        if (limit := self.memory_limit) is not None:
            return (limit.bytes - self._memory.total) * 9 // 10, 0, (f"{limit.source} leaves",)
        return sys.maxsize, 0, ()

    @property
    def kept(self) -> int | None:
        """Layers that stay on a GPU or TPU to which the others are copied; None where none is."""
        where = self.residence
        return where.kept if isinstance(where, Pinned) and where.streamed else None

    @functools.cached_property
    def memory_limit(self) -> Limit | None:
        """What each device has free before loading, or what the config says, or None where nobody knows.

        Raises ConfigError when there are no such devices.
        """
        if (limit := config_limit(self.config) or self.limit) is not None:
            return limit
        on_cpu = self.config.platform == "cpu"
        if on_cpu and self.split.devices == 1:
            return host_limit()
        from packlight.compile import aot

        local = aot.find_devices(self.config, self.split).local
        return host_limit(len(local)) if on_cpu else device_limit(local)

    def with_prefix_cache(self, nbytes: int | None = None) -> "Prepared":
        """The same with so much host memory at most for beginnings of texts without a slot; None: what suits a server,
        where one device runs the model. Raises ConfigError for devices that cannot.
        """
        if nbytes is None and (self.split.devices > 1 or not self.model.generates):
            return self
        if nbytes is None:
            free = host_limit()
            where = self.residence
            mapped = where.step_bytes if isinstance(where, Pinned) else 0 if where else self.memory.mapped
            left = free.bytes - self.memory.total - mapped if free is not None else 0
            nbytes = self.config.prefix_cache_bytes or prefix_budget(left)
        return dataclasses.replace(self, changes=dataclasses.replace(self.changes, prefix_cache=nbytes))

    def resident(self, why: str) -> "Prepared":
        """The same with weights that are read into memory. Raises MemoryLimitError, which begins with `why` they are
        not mapped, when they do not fit.
        """
        changes = dataclasses.replace(self.changes, weights="resident", weights_budget=None, weights_ahead=None)
        changed = dataclasses.replace(self, changes=changes)
        try:
            changed.check_memory()
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{why}; ", *error.parts) from None
        return changed

    def steps(self, placement: "Placement") -> "Steps":
        """What the executables of the plan are made from, on these devices."""
        from packlight.compile.steps import Steps

        return Steps(self.model, self.config, self.plan, self.kernels, placement)

    def check_memory(self, scratch: int | None = None) -> None:
        """Raises MemoryLimitError when the plan, with a step's scratch once it is known, does not fit the device."""
        if self.memory_limit is not None:
            plan = dataclasses.replace(self.memory, scratch=scratch)
            self.memory_limit.check(plan, shown_path(self.file.path))


@rotated
def prepare(
    path: str | os.PathLike[str],
    config: str | os.PathLike[str] | CompileConfig | None = None,
    context: int | None = None,
    slots: int | None = None,
    kv_type: KVType | None = None,
    speculate: int | None = None,
    weights: Weights | None = None,
    weights_budget: int | None = None,
    weights_ahead: int | None = None,
    draft_model: str | os.PathLike[str] | None = None,
    **rope: Unpack[Rope],
) -> Prepared:
    """Opens and checks a file and a config, as `load` does first; reads no weights and imports no jax.

    The arguments are `load`'s. Raises GGUFError, UnsupportedError, ConfigError and, for a name, DownloadError.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ConfigError(f"path is the file or the name of a model, not {shown(repr(path))}")
    drafted = None if draft_model is None else shown_path(str(draft_model))
    changes = Changes(
        context,
        slots,
        kv_type,
        speculate=speculate,
        weights=weights,
        weights_budget=weights_budget,
        weights_ahead=weights_ahead,
        drafted=drafted,
    )
    rotation = RopeChanges(**rope)
    if config is not None and not isinstance(config, CompileConfig):
        if not isinstance(config, str | os.PathLike):
            raise ConfigError(f"config is a path, a name or a CompileConfig, not {shown(repr(config))}")
        config = read_config(config)
    file = open_gguf(find(path))
    model = stretched(ModelConfig.from_gguf(file), file, rotation)
    check(file, model)
    changes.check(model)
    tokenizer = Tokenizer.from_file(file)
    draft = None if draft_model is None else open_draft(draft_model, file, model, tokenizer)
    prepared = Prepared(file, model, tokenizer, config, changes, draft=draft)
    _ = prepared.context  # an impossible one is refused here
    return prepared


def default_platform() -> str:
    """The platform of jax's default device; jax is not imported to say "cpu" where it can find no other."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    plugins = ("jax_plugins", "libtpu")  # importable where jax may find an accelerator
    if asked == "cpu" or not (asked or any(map(importlib.util.find_spec, plugins)) or _plugin_entry_points()):
        return "cpu"
    from packlight.compile import aot

    return aot.default_platform()


def _plugin_entry_points() -> bool:
    return bool(importlib.metadata.entry_points(group="jax_plugins"))
