"""packlight's public Python API: load a GGUF file, generate text, look inside.

    llm = packlight.load("model.gguf")
    print(llm.generate("Once upon a time", max_tokens=64, temperature=0).text)

A thin facade: it knows text and timings, and leaves files to `model`, executables and slots to `compile`. jax is
imported only when a model is loaded; a bad file is refused before that.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import numbers
import os
import reprlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import demo
from compile.config import CompileConfig, default_config, read_config
from compile.inspection import format_totals, inspect, tensor_layouts, tensor_paths
from compile.kernels import attention_names, layout, settle
from compile.memory import Limit, MemoryPlan, config_limit, device_limit, host_limit, plan_memory
from compile.plan import Plan, make_plan
from generation import Completion, Run, TokenLogprob
from model.architectures import ARCHITECTURES
from model.chat import ChatTemplateError, prompt_ids, render, special_texts, template_of
from model.config import ModelConfig
from model.declaration import check, formats, used_weights
from model.ggufheader import shown, shown_path
from model.grammar import Grammar, vocabulary
from model.load import HostWeight, read_weights
from model.reader import GGUFFile, open_gguf
from model.sampling import SamplingConfig
from model.sharding import Split, make_split
from model.tokenizer import Tokenizer
from quant.errors import (
    ConfigError,
    ContextLengthError,
    GGUFError,
    MemoryLimitError,
    NonFiniteLogitsError,
    PacklightError,
    UnsupportedError,
)
from quant.formats import FORMATS, format_named

if TYPE_CHECKING:
    from compile.aot import Built
    from compile.engine import Engine
    from model.steering import Steering

__all__ = [
    "ARCHITECTURES",
    "ChatTemplateError",
    "FORMATS",
    "CompileConfig",
    "Completion",
    "ConfigError",
    "ContextLengthError",
    "GGUFError",
    "LLM",
    "MemoryLimitError",
    "NonFiniteLogitsError",
    "PacklightError",
    "SamplingConfig",
    "TokenLogprob",
    "Tokenizer",
    "UnsupportedError",
    "format_totals",
    "inspect",
    "load",
    "render_chat",
    "unpack",
]


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
        from compile import aot

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
        """The tokenizer as grammars need it. Raises ConfigError as `model.grammar.vocabulary` does."""
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


def load(
    path: str | os.PathLike | None = None,
    config: str | os.PathLike | CompileConfig | None = None,
    on_read: Callable[[int, int], None] | None = None,
    on_built: Callable[["Built", int], None] | None = None,
) -> "LLM":
    """Loads the GGUF file at `path` and compiles, or takes from the store, every executable of `config`.

    path: None stands for the embedded demo model.
    config: path of a TOML file, a CompileConfig, or None for the one that ships for jax's default platform.
    on_read(bytes, total bytes) and on_built(executable, total executables) are called while each is done.
    Raises GGUFError, UnsupportedError, ConfigError, and MemoryLimitError: before anything is loaded when weights and
    cache do not fit the device, after compiling when the scratch of a step does not fit beside them.
    """
    return LLM(prepare(demo.MODEL if path is None else path, config), on_read, on_built)


class LLM:
    """A loaded model with its executables, for one thread at a time; open streams take turns.

    file, model, tokenizer, config, plan: what was loaded, and how. placement: the devices, device: their first; split:
    how they share the model. executables: what was built, hit or miss.
    weights_bytes, kv_bytes: what it occupies. memory: the same on each device, with the scratch of the largest step.
    timings: load_s and compile_s.
    """

    def __init__(
        self,
        prepared: Prepared,
        on_read: Callable[[int, int], None] | None = None,
        on_built: Callable[["Built", int], None] | None = None,
    ):
        self.file, self.model, self.tokenizer = prepared.file, prepared.model, prepared.tokenizer
        self.weights_bytes = sum(info.nbytes for info in self.file.tensors.values())
        prepared.check_memory()
        began = time.perf_counter()
        self.config, self.plan, self.split = prepared.config, prepared.plan, prepared.split

        def read(devices: Sequence[int]) -> list[HostWeight]:
            progress = lambda n: on_read(n, self.weights_bytes) if on_read else None  # noqa: E731
            return read_weights(self.file, self.model, progress, prepared.layout, self.split, devices)

        host = read([0]) if self.split.tensor == 1 else None  # before jax is imported, where no device is to be asked

        from compile import aot
        from compile.engine import Engine
        from model.params import place

        self.placement = aot.find_devices(self.config, self.split)
        self.device = self.placement.flat[0]
        params = place(read(self.placement.tensor_numbers) if host is None else host, self.placement)
        loaded = time.perf_counter()
        count = len(self.plan.steps)
        self.executables = aot.build(
            self.model,
            self.config,
            self.plan,
            params,
            self.placement,
            lambda b: on_built(b, count) if on_built else None,
        )
        self._engine = Engine(
            self.model,
            self.config,
            self.plan,
            self.executables,
            params,
            self.tokenizer.eog_ids,
            self.placement,
        )
        self.memory = dataclasses.replace(prepared.memory, scratch=self.executables.scratch_bytes)
        prepared.check_memory(self.memory.scratch)
        self._prepared = prepared
        self._running: dict[int, Run] = {}
        self._known_breakers: dict[tuple[str, ...], dict[int, list[tuple[int, ...]]]] = {}
        self.kv_bytes = self._engine.cache_bytes
        self.timings = {"load_s": loaded - began, "compile_s": time.perf_counter() - loaded}

    @property
    def engine(self) -> "Engine":
        """What runs token ids, for callers that drive it themselves while no stream is open."""
        return self._engine

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`; see `Tokenizer.encode`."""
        return self.tokenizer.encode(text, add_special, parse_special)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; see `Tokenizer.decode`."""
        return self.tokenizer.decode(ids)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after every token of `ids`, float32 (T, V), through the executables that serve generation.

        Raises ConfigError for no ids or one outside the vocabulary, ContextLengthError for too many, PacklightError
        when open streams hold every slot, NonFiniteLogitsError.
        """
        return self._engine.logits(self._prepared.ids(ids))

    def embed(
        self, prompts: "Sequence[str | Sequence[int]]", pooling: str | None = None, normalize: bool = True
    ) -> np.ndarray:
        """A vector for each text or list of token ids: float32 (prompts, D).

        pooling: "mean" of the hidden states behind the last norm, over all tokens, or that of the "last" token; None is
        what the file says, or mean.
        normalize: to length 1. Raises ConfigError for an unknown pooling, no prompts, or an impossible one,
        ContextLengthError for one that is too long, NonFiniteLogitsError for NaN or infinite states.
        Source: llama.cpp's `llama_pooling_type` and `common_embd_normalize`.
        """
        pooling = self._prepared.pooling(pooling)
        if isinstance(prompts, str) or not len(prompts):
            raise ConfigError("embed wants a list of texts, and at least one")
        rows = []
        for prompt in prompts:
            hidden = self._engine.hidden(self._prepared.fitting(prompt))
            row = hidden.mean(0) if pooling == "mean" else hidden[-1]
            if not np.isfinite(row).all():
                raise NonFiniteLogitsError("the model's hidden states are NaN or infinite")
            rows.append(row / max(float(np.linalg.norm(row)), 1e-12) if normalize else row)
        return np.stack(rows)

    def generate(
        self, prompt: "str | Sequence[int] | Sequence[str]", n: int = 1, **sampling: Any
    ) -> "Completion | list[Completion]":
        """Completes a prompt, or several together: a list of prompts gives a list of completions, in order.

        prompt: text, token ids, or a list of texts. n: completions of each prompt; the i-th draws with seed + i, and
        the result is a list, those of a prompt side by side. sampling: the fields of `SamplingConfig` (max_tokens,
        temperature, top_k, top_p, min_p, seed, stop, ...). Each prompt gets the ids it would get alone.
        Raises ConfigError for an empty prompt or a bad value, ContextLengthError for a prompt that leaves no room,
        NonFiniteLogitsError when a step's logits are NaN or infinite.
        """
        several = isinstance(prompt, list | tuple) and prompt and not isinstance(prompt[0], numbers.Integral)
        prompts: Any = prompt if several else [prompt]
        checked = [self._prepared.prompt(p) for p in prompts]
        if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
            raise ConfigError(f"n must be an integer of at least 1, not {reprlib.repr(n)}")
        config = self._checked(sampling)
        runs = []
        for ids in checked:
            seeded = config.with_seed()
            for i in range(n):
                seed = ((seeded.seed or 0) + i) % 2**32
                runs.append(Run(ids, dataclasses.replace(seeded, seed=seed), self.tokenizer))
        for _ in self._follow(runs):
            pass
        completions = [run.completion() for run in runs]
        return completions if several or n > 1 else completions[0]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template: str | None = None,
        **sampling: Any,
    ) -> Completion:
        """The assistant's next message in a conversation of {"role": ..., "content": ...}.

        template: text of a chat template, instead of the file's own. sampling: as in `generate`.
        Raises ConfigError for what is no conversation, ChatTemplateError when the file has no template or it refuses
        the messages, and as `generate` does.
        """
        return self.generate(self.chat_prompt(messages, tools, template), **sampling)  # pyright: ignore[reportReturnType]

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template: str | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant answers. Raises as `chat` does."""
        metadata = self.file.metadata
        template = template if template is not None else template_of(metadata, shown_path(self.file.path))
        bos, eos = special_texts(metadata, self.tokenizer)
        text = render(template, messages, tools=tools, bos_token=bos, eos_token=eos)
        return prompt_ids(self.tokenizer, text)

    def stream(self, prompt: str | Sequence[int], **sampling: Any) -> Generator[str, None, Completion]:
        """Yields the text of `generate(prompt, ...)` as it comes, in whole characters; the `Completion` is the
        generator's return value. Closing the generator ends the generation. Raises as `generate` does, at the call.
        """
        run = Run(self._prepared.prompt(prompt), self._checked(sampling).with_seed(), self.tokenizer)
        return self._stream(run)

    def kernel_paths(self) -> dict[str, str]:
        """Tensor -> the kernel path that reads it: native, xla, reference, gather (packed rows), or f32 (a vector)."""
        return tensor_paths(self.file, self.model, self.config)

    @property
    def attention_path(self) -> str:
        """What computes attention: native or xla, on a GPU mosaic for prompts where it can."""
        return attention_names(self.config, self.model, self.device)

    def layouts(self) -> dict[str, str]:
        """Tensor -> the layout of its packed bytes, ggml's or "rowsN" (`quant.layouts`)."""
        return tensor_layouts(self.file, self.model, self._prepared.layout)

    def _checked(self, sampling: Mapping[str, Any]) -> SamplingConfig:
        """The sampling config of these fields, checked against the model. Raises ConfigError."""
        config = SamplingConfig(**sampling)
        self._prepared.check_sampling(config)
        return config

    def _steering(self, config: SamplingConfig) -> "Steering":
        """What a request's history and its grammar do to its logits."""
        from model.steering import Steering

        breakers = self._breakers(config.dry_sequence_breakers) if config.dries else None
        constraint = Grammar(self._prepared.vocabulary, config) if config.constrained else None
        return Steering(config, sorted(self.tokenizer.eog_ids), breakers, constraint)

    def _breakers(self, texts: tuple[str, ...]) -> dict[int, list[tuple[int, ...]]]:
        if texts not in self._known_breakers:
            from model.steering import sequence_breakers

            pieces = [self.tokenizer.piece(i) for i in range(self.tokenizer.vocab_size)]
            self._known_breakers[texts] = sequence_breakers(texts, pieces, lambda text: self.encode(text, False))
        return self._known_breakers[texts]

    def _stream(self, run: "Run") -> Generator[str, None, Completion]:
        with contextlib.closing(self._follow([run])) as texts:
            yield from texts
        return run.completion()

    def _follow(self, runs: "list[Run]") -> Generator[str, None, None]:
        """Drives the engine until these runs are complete, yielding each piece of text that becomes safe to show."""
        steered = [(run, self._steering(run.sampling)) for run in runs if not run.complete]
        mine = {self._engine.submit(run.prompt, run.sampling, steering=s): run for run, s in steered}
        for run in runs:
            run.began = time.perf_counter()
        self._running |= mine
        try:
            done = False
            while not done:
                done = all(run.complete for run in runs)  # other streams may have driven them to their end
                if not done:
                    self._step()
                yield from (text for run in runs if (text := run.fresh()))
                for run in runs:
                    run.check()
        finally:
            for number in mine:
                self._engine.cancel(number)
                self._running.pop(number)

    def _step(self) -> None:
        """Moves the runs under way, also those of other streams, which find their tokens when they are asked."""
        if self._engine.idle:
            raise PacklightError("the generation was lost: the step it was in was interrupted")
        for event in self._engine.step():
            run = self._running[event.request]
            if not run.complete:  # a launch may have gone on after a stop string
                run.take(event)
            if run.complete:
                self._engine.cancel(event.request)


def render_chat(
    path_or_template: str | os.PathLike,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    bos_token: str = "",
    eos_token: str = "",
    strftime_now: str | None = None,
    **vars: Any,  # noqa: A002  the name templates' variables have in the field
) -> str:
    """The prompt that a chat template makes of a conversation; see `model.chat.render`.

    path_or_template: a GGUF file, whose own template and special tokens are used, or the text of a template.
    Raises ConfigError for what is no conversation, ChatTemplateError when there is no template, or it refuses the
    messages, fails or does not end; GGUFError for a bad file.
    """
    template = os.fspath(path_or_template)
    if isinstance(path_or_template, os.PathLike) or template.endswith(".gguf"):
        file = open_gguf(template)
        bos, eos = special_texts(file.metadata, Tokenizer.from_file(file))
        bos_token, eos_token = bos_token or bos, eos_token or eos
        template = template_of(file.metadata, shown_path(file.path))
    return render(
        template, messages, add_generation_prompt, tools, documents, bos_token, eos_token, strftime_now, **vars
    )


def unpack(blocks: np.ndarray, qtype: str) -> np.ndarray:
    """The weights in rows of packed blocks: uint8 (..., n * block_bytes) -> float32 (..., n * elements).

    Raises UnsupportedError for an unknown format, listing the known ones, and ValueError for another dtype or a row
    that is no whole number of blocks.
    """
    size = format_named(qtype).bytes
    blocks = np.asarray(blocks)
    if blocks.dtype != np.uint8 or blocks.ndim < 1 or blocks.shape[-1] % size:
        raise ValueError(
            f"{qtype} blocks are uint8 rows of a multiple of {size} bytes, not {blocks.dtype} {blocks.shape}"
        )
    import jax

    from quant import qtensor

    rows = blocks.reshape(*blocks.shape[:-1], blocks.shape[-1] // size, size)
    return np.asarray(jax.jit(qtensor.unpack, static_argnums=1)(rows, qtype))


def _default_platform() -> str:
    """The platform of jax's default device; jax is not imported to say "cpu" where it can find no other."""
    asked = os.environ.get("JAX_PLATFORMS", "")
    plugins = ("jax_plugins", "libtpu")  # importable where jax may find an accelerator
    if asked == "cpu" or not (asked or any(map(importlib.util.find_spec, plugins)) or _plugin_entry_points()):
        return "cpu"
    from compile import aot

    return aot.default_platform()


def _plugin_entry_points() -> bool:
    return bool(importlib.metadata.entry_points(group="jax_plugins"))
