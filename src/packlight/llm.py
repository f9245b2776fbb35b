"""A loaded model: `load` and `LLM`, which generate text, chat, and give logits and embeddings.

A thin facade: it leaves files to `model`, executables to `compile`, slots and turns to `serve`. jax is imported only
when a model is loaded, and a bad file is refused before that.
"""

import dataclasses
import numbers
import os
import reprlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

import numpy as np

from packlight import demo
from packlight.arguments import Sampling, rotated, sampled
from packlight.common.arguments import suggesting
from packlight.common.errors import Argument, ConfigError, NonFiniteLogitsError
from packlight.common.text import megabytes, shown, shown_path
from packlight.compile.config import CompileConfig
from packlight.compile.memory import MemoryPlan
from packlight.compile.plan import Plan, StepKey
from packlight.model.gguf.reader import GGUFFile
from packlight.model.sampling.config import SamplingConfig
from packlight.model.spec.config import ModelConfig
from packlight.model.spec.pooling import Pooling, check_generates, pooling_of, unit
from packlight.model.spec.rope_changes import Rope
from packlight.model.text.chat import Prompt, make_prompt, own_prompt, prompt_ids, special_texts
from packlight.model.text.tokenizer import Tokenizer
from packlight.model.weights.load import HostWeight, read_weights
from packlight.model.weights.mapped import Mapped, map_weights
from packlight.model.weights.pinned import Pinned
from packlight.prepared import KVType, Prepared, Weights, prepare
from packlight.prompts import Ids, Prompts
from packlight.quant.kernels.native_build import Running
from packlight.quant.kernels.native_stream import StreamCounts
from packlight.serve.prefix import Keep
from packlight.serve.reading import Reading
from packlight.serve.run import Completion, Run, Shown
from packlight.serve.scheduler import Scheduler, Stream

if TYPE_CHECKING:
    import jax

    from packlight.compile.aot import Built, Executables
    from packlight.model.weights.placement import Device, Placement
    from packlight.serve.engine import Engine


@rotated
def load(
    path: str | os.PathLike[str] | None = None,
    config: "str | os.PathLike[str] | CompileConfig | None" = None,
    on_read: "Callable[[int, int], None] | None" = None,
    on_built: "Callable[[Built, int], None] | None" = None,
    *,
    context: int | None = None,
    slots: int | None = None,
    kv_type: KVType | None = None,
    speculate: int | None = None,
    weights: Weights | None = None,
    weights_budget: int | None = None,
    weights_ahead: int | None = None,
    draft_model: str | os.PathLike[str] | None = None,
    **rope: Unpack[Rope],
) -> "LLM":
    """Loads a GGUF file and compiles, or takes from the store, all that runs it.

    Args:
        path: the file; of a split one, its first part. Or a name: `hf:OWNER/REPO`, `hf:OWNER/REPO:Q4_K_M` or
            `hf:OWNER/REPO:FILE.gguf` (with the extra `hub`; @REVISION behind REPO; downloaded once), `ollama:NAME:TAG`.
            None is the embedded demo model.
        config: a TOML file, the name of a shipped config ("cpu", "gpu", "tpu", ...), a CompileConfig, or None for the
            one that ships for jax's default platform.
        on_read: called with bytes read and bytes in all while the weights are read.
        on_built: called with an executable and the number of all while they are built.
        context: tokens that a prompt and its answer may have together, at most what the model has, or what the
            arguments below stretch it to. None: the config's, by default the model's or 4096, whichever is less.
        slots: sequences that run at a time; each takes the memory of a context. None: the config's, 4 on a CPU.
        kv_type: what keys and values are cached in. None: the config's, "f16" on a CPU.
        speculate: drafts of a text's next tokens, looked up in the text itself, that a step verifies at most. They
            change nothing but speed, of one text at a time. None: the config's, or 0: none.
        weights: "resident", they are read into memory; "mapped", the first load writes them to a file beside the
            executables, as large as the model, which stands for memory then and at every later load: that reads
            nothing, and what memory is short of the system takes back; "streamed", the same, and no more of the file is
            in memory than `weights_budget` lets, so that each step reads the layers that do not fit, ahead of where it
            is. On a CPU; on a GPU or TPU, which maps nothing, "streamed" leaves what is more than the budget in pinned
            host memory, from which each step copies it. None: the config's, or "resident".
        weights_budget: bytes of streamed weights that are in memory at most, 0 for what the machine or the device
            leaves. None: the config's, or 0.
        weights_ahead: on a CPU, streamed layers that are asked for before a step comes to them. None: the config's,
            or 2.
        draft_model: a second, smaller model with the same tokens, named as `path` is, which makes drafts too. It takes
            memory of its own. Without `speculate` a step verifies 3 at most. None: drafts are looked up only, if any.

    Raises:
        MissingFileError: there is no such file; it is a FileNotFoundError too.
        DownloadError: a name's file cannot be downloaded.
        GGUFError: the file is damaged, or no model.
        UnsupportedError: its architecture, formats or tokenizer are none that packlight runs.
        ConfigError: a value of the config, or of an argument here, is impossible.
        MemoryLimitError: before anything is loaded where weights and cache do not fit the device; after compiling
            where a step's scratch does not fit beside them. It says which context or slots would.
    """
    path = demo.MODEL if path is None else path
    prepared = prepare(
        path, config, context, slots, kv_type, speculate, weights, weights_budget, weights_ahead, draft_model, **rope
    )
    return LLM(prepared, on_read, on_built)


class LLM:
    """A loaded model with its executables, as `load` gives it. Open streams and callers in several threads take turns.

    `with packlight.load(...) as llm:` gives its memory back at the end, as `close` does.
    """

    file: GGUFFile  # what was loaded
    model: ModelConfig  # its hyperparameters
    tokenizer: Tokenizer
    config: CompileConfig  # what it was built for, with every choice made definite
    plan: Plan  # the steps that were built
    executables: "Executables"  # they themselves, each taken from the store or compiled
    placement: "Placement"  # the devices, and how they share the model
    device: "Device"  # the first of them
    engine: "Engine"  # runs token ids, for callers that drive it themselves while no stream is open
    weights_bytes: int  # of the file's tensors that the model reads
    kv_bytes: int  # of the cache, on all devices together
    memory: MemoryPlan  # what each device holds, with the scratch of the largest step
    timings: dict[str, float]  # seconds: load_s to read and place the weights, compile_s to build; of both models
    prompts: Prompts  # checks what is asked of the model
    scheduler: Scheduler  # moves all that is generated
    draft: "LLM | None" = None  # the draft model
    _mapped: Mapped = Mapped(None)  # what came of mapping the weights

    def __init__(
        self,
        prepared: Prepared,
        on_read: Callable[[int, int], None] | None = None,
        on_built: Callable[["Built", int], None] | None = None,
        draft: "LLM | None" = None,
    ):
        """Reads the weights and builds the executables of what was prepared. Arguments and errors are `load`'s.

        draft: the draft model, as it was loaded from `Prepared.companion`; None loads it, if there is one.
        """
        self.file, self.model, self.tokenizer = prepared.file, prepared.model, prepared.tokenizer
        self.weights_bytes = prepared.weights_bytes
        prepared.check_memory()
        if prepared.companion is not None:
            self.draft = LLM(prepared.companion) if draft is None else draft
        began = time.perf_counter()
        progress = lambda n: on_read(n, self.weights_bytes) if on_read else None  # noqa: E731
        host, mapped = None, Mapped(None)
        config, where = prepared.config, prepared.residence
        if config.weights != "resident" and not isinstance(where, Pinned):
            folder, layouts = config.store_dir, prepared.kernels.layouts
            mapped = map_weights(self.file, self.model, progress, layouts, folder, config.cache_bytes, where)
            host = mapped.weights
            prepared = prepared if host is not None else prepared.resident(mapped.warnings[-1])
        self._mapped = mapped._replace(weights=None)
        self.config, self.plan, split = prepared.config, prepared.plan, prepared.split
        self._kernels, self.prompts = prepared.kernels, prepared.prompts

        def read(devices: Sequence[int]) -> list[HostWeight]:
            return read_weights(self.file, self.model, progress, self._kernels.layouts, split, devices)

        if host is None and split.tensor == 1:  # before jax is imported, where no device has to be known
            host = read([0])

        from packlight.compile import aot
        from packlight.model.weights.params import place
        from packlight.serve.draft_model import DraftModel
        from packlight.serve.engine import Engine

        self.placement = aot.find_devices(self.config, split)
        self.device = self.placement.flat[0]
        number = None if mapped.stream is None else mapped.stream.number
        host = read(self.placement.tensor_numbers) if host is None else host
        params = place(host, self.placement, number, prepared.kept)
        loaded = time.perf_counter()
        built = lambda b: on_built(b, len(self.plan.steps)) if on_built else None  # noqa: E731
        steps = prepared.steps(self.placement)
        self.executables = aot.build(steps, params, built)
        drafts = None
        if (draft := self.draft) is not None:
            weight, vocabulary = draft.weights_bytes / self.weights_bytes, draft.model.vocab_size
            drafts = DraftModel(draft.engine, weight, vocabulary, self.model.vocab_size)
        steady, ends = not self.varying, self.tokenizer.eog_ids
        self.engine = Engine(steps, self.executables, params, ends, steady, mapped.lost, drafts)
        scratch = max(each.executables.scratch_bytes for each in (self, self.draft) if each is not None)
        self.memory = dataclasses.replace(prepared.memory, scratch=scratch)
        prepared.check_memory(self.memory.scratch)
        self.kv_bytes = self.engine.cache_bytes
        took = {"load_s": loaded - began, "compile_s": time.perf_counter() - loaded}
        self.timings = {name: took[name] + (draft.timings[name] if draft is not None else 0) for name in took}
        self.scheduler = Scheduler(self.engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory of weights and cache back. What is asked of the model afterwards, by an open stream too,
        raises PacklightError; to close it again does nothing.
        """
        self.scheduler.close()
        if self._mapped.stream is not None:
            self._mapped.stream.close()
        if self.draft is not None:
            self.draft.close()

    @property
    def streamed(self) -> StreamCounts | None:
        """What streaming the weights took so far, over all steps; None where they are not streamed."""
        return None if self._mapped.stream is None else self._mapped.stream.counts()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Lines that a user should see: what kept weights from being mapped, or executables from the store."""
        draft = self.draft.warnings if self.draft is not None else ()
        return (*self._mapped.warnings, *self.executables.warnings, *draft)

    def __repr__(self) -> str:
        plan, device = self.plan, self.device.platform
        name, architecture = shown_path(os.path.basename(self.file.path)), self.file.metadata["general.architecture"]
        return (
            f"<packlight.LLM {name}: {architecture}, {megabytes(self.weights_bytes)}; "
            f"context {plan.context}, slots {plan.slots}, {device}>"
        )

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
        checked = self.prompts.ids(ids)
        with self.scheduler.turn():
            return self.engine.logits(checked)

    @overload
    def embed(
        self,
        prompts: "Iterable[str | Ids]",
        pooling: Literal["mean", "cls", "last", "rank"] | None = None,
        normalize: bool = True,
    ) -> np.ndarray: ...

    @overload
    def embed(
        self, prompts: "Iterable[str | Ids]", pooling: Literal["none"], normalize: bool = True
    ) -> list[np.ndarray]: ...

    @overload
    def embed(
        self, prompts: "Iterable[str | Ids]", pooling: Pooling | None, normalize: bool = True
    ) -> np.ndarray | list[np.ndarray]: ...

    @suggesting
    def embed(
        self,
        prompts: "Iterable[str | Ids]",
        pooling: Pooling | None = None,
        normalize: bool = True,
    ) -> np.ndarray | list[np.ndarray]:
        """A vector for each text, which does not depend on the other texts.

        Models that are made for embeddings (encoders, and those whose files state a pooling) run many texts at a time;
        of others one after the other is read as a prompt is.

        Args:
            prompts: texts, or token ids of each (a list or an array).
            pooling: "mean" averages the hidden states behind the last norm over all tokens, "cls" takes that of the
                first token, "last" that of the last; dense layers of the model follow. "rank" gives what a reranker's
                head says, "none" the hidden states themselves. None does what the file says, or "mean" where it says
                nothing.
            normalize: scales each vector to length 1, but for what a reranker's head says.

        Returns:
            float32 (prompts, D); of "rank" (prompts, labels); of "none" a list with (T, D) for each prompt.

        Raises:
            ConfigError: the pooling is unknown, or needs a head that the file does not have, or there are no prompts,
                or an impossible one.
            ContextLengthError: a prompt is longer than the context.
            NonFiniteLogitsError: hidden states are NaN or infinite.

        Source: llama.cpp's `llama_pooling_type` and `common_embd_normalize`.
        """
        kind = pooling_of(self.model, pooling)
        given = _several(prompts, "embed wants a list of texts, and at least one")
        rows = self._pooled([self.prompts.fitting(prompt) for prompt in given], kind)
        if normalize and kind != "rank":
            rows = [unit(row) for row in rows]
        return rows if kind == "none" else np.stack(rows)

    def readings(self, texts: Sequence[list[int]], pooling: str) -> list[Reading]:
        """What gives a row of each text of token ids, once `scheduler` has driven it, of a model that generates."""
        return [Reading(ids, pooling) for ids in texts]

    @suggesting
    def rerank(self, query: str, documents: Iterable[str]) -> np.ndarray:
        """How relevant each document is to a query, by a reranker: its head's first score, the higher the better.

        Args:
            query: what is looked for.
            documents: texts.

        Returns:
            float32 (documents,), in their order. What scores mean is the model's business: Qwen3's are probabilities,
            those of BERT and its kind are logits.

        Raises:
            ConfigError: the model is no reranker, or there are no documents, or an impossible text.
            ContextLengthError: a query with its document is longer than the context.
            NonFiniteLogitsError: scores are NaN or infinite.

        Source: llama.cpp's server, `/rerank`.
        """
        pooling_of(self.model, "rank")
        given = _several(documents, "rerank wants a list of documents, and at least one")
        return np.stack(self._pooled([self.prompts.pair(query, document) for document in given], "rank"))[:, 0]

    def _pooled(self, texts: list[list[int]], pooling: str) -> list[np.ndarray]:
        """What a pooling makes of each text of token ids, not made to be of length 1. Raises NonFiniteLogitsError."""
        if not self.model.encodes:
            readings = self.readings(texts, pooling)
            self.scheduler.drive(readings)
            return [reading.row for reading in readings]
        rows: list[Any] = [None] * len(texts)
        for key, group in self.plan.text_groups([len(ids) for ids in texts]):
            for at, row in zip(group, self.encode_group(key, [texts[at] for at in group], pooling), strict=True):
                rows[at] = row
        return rows

    def encode_group(self, key: StepKey, texts: Sequence[list[int]], pooling: str) -> list[np.ndarray]:
        """What a pooling makes of texts that one step of an encoder runs (`Plan.text_groups`). Raises
        NonFiniteLogitsError.
        """
        with self.scheduler.turn():
            rows = self.engine.encode(key, texts, pooling)
        if not all(np.isfinite(row).all() for row in rows):
            raise NonFiniteLogitsError("the model's hidden states are NaN or infinite")
        return rows

    @overload
    def generate(
        self,
        prompt: str | Ids,
        *,
        n: Literal[1] = 1,
        parse_special: bool = True,
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: "list[str] | list[list[int]] | list[np.ndarray] | list[jax.Array] | tuple[str, ...]",
        *,
        n: int = 1,
        parse_special: bool = True,
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self,
        prompt: str | Ids,
        *,
        n: int,
        parse_special: bool = True,
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> list[Completion] | Completion: ...

    @sampled
    def generate(
        self,
        prompt: "str | Ids | Sequence[str | Ids]",
        *,
        n: int = 1,
        parse_special: bool = True,
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> "Completion | list[Completion]":
        """Continues a prompt, or several together; each gets the tokens it would get alone.

        Args:
            prompt: text, token ids (a list or an array), or a list of prompts.
            n: completions of each prompt; the i-th draws with seed + i.
            parse_special: control tokens that a text spells are tokens, as in llama.cpp's completion; False: they are
                text.
            reuse_prefix: of what the cache still has of the last text, take every token that the prompt begins with,
                even where that may change the last bits of numbers (`varying`). Without it, only chunks that the
                prompt alone would be read in are taken there.
            sampling: how tokens are drawn and when the text ends, such as max_tokens=64, temperature=0 (greedy), seed=1
                or stop=["."]; `help(packlight.Sampling)` says what each means.

        Returns:
            A `Completion`. For a list of prompts, or n above 1, a list of them in order, those of a prompt together.

        Raises:
            ConfigError: a prompt is empty or none, or a value is impossible.
            ContextLengthError: a prompt leaves no room for an answer.
            NonFiniteLogitsError: a step's logits are NaN or infinite.
        """
        several = isinstance(prompt, list | tuple) and prompt and not isinstance(prompt[0], numbers.Integral)
        prompts: Any = prompt if several else [prompt]
        config, checked = self._checked(sampling), []
        for each in prompts:  # no comprehension: in Python 3.11 it hides the caller from warnings
            checked.append(self.prompts.answerable(each, parse_special, config.answered))
        if isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1:
            raise ConfigError(f"n must be an integer of at least 1, not {reprlib.repr(n)}")
        completions = self.scheduler.complete(self.runs(checked, config, n, self._keep(reuse_prefix)))
        return completions if several or n > 1 else completions[0]

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template: str | None = None,
        *,
        stream: Literal[False] = False,
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Completion: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template: str | None = None,
        *,
        stream: Literal[True],
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Stream: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template: str | None = None,
        *,
        stream: bool,
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Completion | Stream: ...

    @sampled
    def chat(
        self,
        messages: "str | Sequence[Mapping[str, Any]]",
        tools: "Sequence[Any] | None" = None,
        template: str | None = None,
        *,
        stream: bool = False,
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Completion | Stream:
        """The assistant's next message in a conversation.

        Args:
            messages: a list of {"role": ..., "content": ...}; or a text, which is a user's only message.
            tools: descriptions of functions that the model may call, as the template wants them.
            template: text of a chat template, instead of the file's own.
            stream: gives what `LLM.stream` gives: the text in pieces as it comes.
            reuse_prefix: as in `generate`; with it the next turn of a conversation reads only what is new.
            sampling: as in `generate`.

        Raises:
            ConfigError: these are no messages, or a value is impossible.
            ChatTemplateError: the file has no template, or it refuses the messages or leaves the tools out.
            ContextLengthError, NonFiniteLogitsError: as in `generate`.
        """
        prompt = self.chat_prompt(messages, tools, template)
        answer = self.stream if stream else self.generate
        return answer(prompt, reuse_prefix=reuse_prefix, **sampling)

    @suggesting
    def chat_prompt(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template: str | None = None,
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant answers: control tokens are those that the template
        wrote, and what messages and tools spell is text. Arguments and errors are `chat`'s.
        """
        return prompt_ids(self.tokenizer, self.rendered_chat(messages, tools, template))

    def rendered_chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        template: str | None = None,
        **variables: Any,
    ) -> Prompt:
        """The text that `chat_prompt` makes token ids of. variables: further names for the template, such as
        `enable_thinking`, or `add_generation_prompt=False`. Arguments and errors are `chat`'s.
        """
        check_generates(self.model)
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}] if messages else []
        bos, eos = special_texts(self.file.metadata, self.tokenizer)
        told = variables | {"tools": tools, "bos_token": bos, "eos_token": eos}
        if template is not None and not (isinstance(template, str) and "{" in template):
            said = (
                f" is the text of a chat template, which has a '{{'; it is no path, nor {shown(reprlib.repr(template))}"
            )
            raise ConfigError(Argument("template"), said)
        if template is None:
            return own_prompt(self.file.metadata, shown_path(self.file.path), messages, **told)
        return make_prompt(template, messages, **told)

    @sampled
    def stream(
        self,
        prompt: "str | Ids",
        *,
        parse_special: bool = True,
        reuse_prefix: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Stream:
        """Yields the text of `generate(prompt, ...)` as it comes, in pieces of whole characters.

        The `Completion` is the generator's return value. Closing the generator ends the generation. Arguments and
        errors are `generate`'s; a bad one is refused at the call.
        """
        config = self._checked(sampling)
        ids = self.prompts.answerable(prompt, parse_special, config.answered)
        (run,) = self.runs([ids], config, 1, self._keep(reuse_prefix))
        return self.scheduler.stream(run)

    def kernel_paths(self) -> dict[str, str]:
        """Tensor -> the kernel path that reads it: native, xla, reference, gather (packed rows), or f32 (a vector)."""
        return dict(self._kernels.tensors)

    @property
    def native(self) -> Running | None:
        """What runs as native kernels: an instruction set and where the library comes from; None where none run."""
        return self._kernels.native

    @property
    def attention_path(self) -> str:
        """What computes attention: native or xla, on a GPU mosaic for prompts where it can."""
        return self._kernels.attention_names(self.device)

    @property
    def experts_path(self) -> str | None:
        """What runs a mixture's experts: native (all in one call), tiles (a loop), None where there is none."""
        return self._kernels.experts

    @property
    def varying(self) -> tuple[str, ...]:
        """Why the last bits of an answer may depend on more than its tokens, parameters and seed, in words.

        () where they do not: docs/same-answer.md.
        """
        return self._kernels.varying if self.placement.single else (*self._kernels.varying, "several devices add up")

    def layouts(self) -> dict[str, str]:
        """Tensor -> the layout of its packed bytes, ggml's or "rowsN" (`quant.layouts`)."""
        return dict(self._kernels.layouts)

    def _checked(self, sampling: Mapping[str, Any]) -> SamplingConfig:
        """The sampling config of these fields, checked against the model. Raises ConfigError."""
        config = SamplingConfig(**sampling)
        self.prompts.check_sampling(config)
        return config

    def runs(
        self,
        prompts: list[list[int]],
        config: SamplingConfig,
        n: int,
        keep: Keep,
        salt: str = "",
        shown: Callable[[list[int], SamplingConfig], Shown | None] = lambda prompt, config: None,
    ) -> list[Run]:
        """What the scheduler moves for prompts of token ids that are `answerable`: n runs of each, those of a prompt
        together. The i-th draws with seed + i, of a seed that each prompt draws for itself where there is none.

        salt: only runs of the same one share what their prompts begin with. shown: makes of a prompt and how it is
        sampled what makes text of the run's ids, as `Run` takes it.
        """
        made, drafts = [], self.plan.verified and config.prediction is not None
        predicted = self.tokenizer.encode(config.prediction or "", add_special=False) if drafts else []
        for ids in prompts:
            seeded = config.with_seed()
            for i in range(n):
                one = dataclasses.replace(seeded, seed=((seeded.seed or 0) + i) % 2**32)
                steering, text = self.prompts.steering(one), shown(ids, one)
                made.append(Run(ids, one, self.tokenizer, steering, keep, text, salt, predicted))
        return made

    def _keep(self, reuse_prefix: bool) -> Keep:
        return Keep.TOKENS if reuse_prefix or not self.varying else Keep.CHUNKS


def _several(given: Any, wanted: str) -> list[Any]:
    """What a list or the like holds; a text is none. Raises ConfigError with `wanted` where that is nothing."""
    found = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not found:
        raise ConfigError(wanted)
    return found
