"""A file and a config that fit each other: everything that is known, checked and planned before a weight is read."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import numbers
import os
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from packlight.common.errors import ConfigError, ContextLengthError
from packlight.common.text import shown, shown_path
from packlight.compile.config import CompileConfig, default_config, read_config
from packlight.compile.kernels import layout, settle
from packlight.compile.memory import Limit, MemoryPlan, config_limit, device_limit, host_limit, plan_memory
from packlight.compile.plan import Plan, make_plan
from packlight.model.gguf.reader import GGUFFile, open_gguf
from packlight.model.sampling.config import SamplingConfig
from packlight.model.sampling.grammar import Grammar, vocabulary
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.sharding import Split, make_split
from packlight.model.spec.weights import check, formats, used_weights
from packlight.model.text.tokenizer import Tokenizer

POOLINGS = ("mean", "last")  # of `LLM.embed`
POOLING_TYPES = {0: "mean", 1: "mean", 2: "cls", 3: "last", 4: "rank"}  # by a file's number; 0 leaves it open


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A file and a config that fit each other, found out before any weight is read and, but for `config` and `plan`
    when no config was named, without jax.

    named: the config that was asked for; None stands for the one that ships for jax's default platform.
    """

    file: GGUFFile
    model: ModelConfig
    tokenizer: Tokenizer
    named: CompileConfig | None
    named_context: int | None

    @functools.cached_property
    def settled(self) -> tuple[CompileConfig, str | None]:
        """The config with its choices made definite for this machine, and a warning when one is not what it may be."""
        return settle(self._with_context(self.named or default_config(_default_platform())))

    @property
    def config(self) -> CompileConfig:
        return self.settled[0]

    @property
    def warnings(self) -> list[str]:
        """What the user should know: keys of the architecture that nothing reads, choices that are not what they may
        be.
        """
        unread = ", ".join(self.model.unread)
        return [*([f"not read from the file: {shown(unread)}"] if unread else []), *filter(None, self.settled[1:])]

    @property
    def layout(self) -> str:
        """The layout of packed matrices that the kernels read."""
        return layout(self.config)

    @functools.cached_property
    def plan(self) -> Plan:
        return make_plan(self.config, self.model.context_length)

    @functools.cached_property
    def split(self) -> Split:
        """How the devices of the config's mesh share the model."""
        kinds, mesh = formats(self.file), self.config.mesh
        return make_split(self.model, used_weights(self.model, kinds), kinds, mesh.data, mesh.tensor)

    @functools.cached_property
    def context(self) -> int:
        """Tokens a slot will hold; the same under every config that ships, as they all leave it to the file."""
        return make_plan(self._with_context(self.named or default_config("cpu")), self.model.context_length).context

    @functools.cached_property
    def memory(self) -> MemoryPlan:
        """Bytes of weights and cache on each device; scratch is not known before executables are."""
        return plan_memory(self.file, self.model, self.config, self.plan, self.layout, self.split)

    @functools.cached_property
    def memory_limit(self) -> Limit | None:
        """What each device has free before loading, or what the config says, or None where nobody knows.

        Raises ConfigError when there are no such devices.
        """
        if (limit := config_limit(self.config)) is not None:
            return limit
        on_cpu = self.config.platform == "cpu"
        if on_cpu and self.split.data * self.split.tensor == 1:
            return host_limit()
        from packlight.compile import aot

        local = aot.find_devices(self.config, self.split).local
        return host_limit(len(local)) if on_cpu else device_limit(local)

    def check_memory(self, scratch: int | None = None) -> None:
        """Raises MemoryLimitError when weights, cache and scratch do not fit the device."""
        if self.memory_limit is not None:
            plan = dataclasses.replace(self.memory, scratch=scratch)
            self.memory_limit.check(plan, shown_path(self.file.path))

    def _with_context(self, config: CompileConfig) -> CompileConfig:
        return config if self.named_context is None else dataclasses.replace(config, context=self.named_context)

    def ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a text, or ids given as such: checked. Raises ConfigError for none and for impossible ones."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt) if prompt else []
        elif isinstance(prompt, list | tuple | np.ndarray) and all(isinstance(i, numbers.Integral) for i in prompt):
            ids = [int(i) for i in prompt]
        else:
            raise ConfigError(f"a prompt is text or a list of token ids, not {' '.join(reprlib.repr(prompt).split())}")
        if not ids:
            raise ConfigError("the prompt is empty")
        for i in ids:
            if not 0 <= i < self.model.vocab_size:
                raise ConfigError(f"prompt token id {i} is outside the vocabulary of {self.model.vocab_size}")
        return ids

    @functools.cached_property
    def vocabulary(self) -> Any:
        """The tokenizer as grammars need it. Raises ConfigError as `model.sampling.grammar.vocabulary` does."""
        return vocabulary(self.tokenizer)

    def check_sampling(self, config: SamplingConfig) -> None:
        """Raises ConfigError for a logit bias of a token that the vocabulary does not have, and for a JSON schema,
        regular expression or grammar that is wrong or cannot be honoured.
        """
        for token, _ in config.logit_bias:
            if token >= self.model.vocab_size:
                raise ConfigError(f"logit_bias of token id {token}: the vocabulary has {self.model.vocab_size}")
        if config.constrained:
            Grammar(self.vocabulary, config)

    def pooling(self, asked: str | None) -> str:
        """What was asked for, or what the file says. Raises ConfigError for what is not in POOLINGS."""
        name = asked if asked is not None else POOLING_TYPES.get(self.model.pooling, str(self.model.pooling))
        if name not in POOLINGS:
            whose = "" if asked is not None else ", which the file asks for,"
            raise ConfigError(f"pooling {reprlib.repr(name)}{whose} is unknown; there are: {', '.join(POOLINGS)}")
        return name

    def fitting(self, prompt: str | Sequence[int]) -> list[int]:
        """`ids` of a prompt that fits the context. Raises ContextLengthError for one that does not."""
        ids = self.ids(prompt)
        if len(ids) > self.context:
            raise ContextLengthError(f"the text has {len(ids)} tokens; the context holds {self.context}")
        return ids

    def prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """`ids` of a prompt that leaves room for an answer. Raises ContextLengthError for one that does not."""
        ids = self.ids(prompt)
        if len(ids) >= self.context:
            longest = self.model.context_length
            advice = f"shorten it, or ask for more context: the model takes {longest}"
            raise ContextLengthError(
                f"the prompt has {len(ids)} tokens, which leaves no room for an answer in a context of {self.context}; "
                f"{advice if longest > self.context else 'shorten it'}"
            )
        return ids


def prepare(
    path: str | os.PathLike, config: str | os.PathLike | CompileConfig | None = None, context: int | None = None
) -> Prepared:
    """Opens and checks a file and a config, as `load` does first; imports no jax.

    context: replaces the config's when given. Raises GGUFError, UnsupportedError, ConfigError.
    """
    if config is not None and not isinstance(config, CompileConfig):
        config = read_config(config)
    file = open_gguf(path)
    model = ModelConfig.from_gguf(file)
    check(file, model)
    tokenizer = Tokenizer.from_file(file)
    prepared = Prepared(file, model, tokenizer, config, context)
    _ = prepared.context  # an impossible one is refused here
    return prepared


def _default_platform() -> str:
    """The platform of jax's default device; jax is not imported to say "cpu" where it can find no other."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    plugins = ("jax_plugins", "libtpu")  # importable where jax may find an accelerator
    if asked == "cpu" or not (asked or any(map(importlib.util.find_spec, plugins)) or _plugin_entry_points()):
        return "cpu"
    from packlight.compile import aot

    return aot.default_platform()


def _plugin_entry_points() -> bool:
    return bool(importlib.metadata.entry_points(group="jax_plugins"))
