"""Calls as a type checker sees them. `make lint` checks this file; an `ignore` that hides no error is one itself."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Iterable
from typing import assert_type

import jax
import numpy as np

import packlight


def calls(llm: packlight.LLM, ids: jax.Array, flag: bool, count: int) -> Iterable[str]:
    settings: packlight.Sampling = {"temperature": 0, "stop": ["."]}
    done = llm.generate("a", temperature=0.7, max_tokens=64, stop=["."], json_schema={"type": "object"})
    assert_type(done, packlight.Completion)
    yield done.text
    assert_type(llm.generate([1, 2, 3], **settings), packlight.Completion)
    assert_type(llm.generate(np.arange(3)), packlight.Completion)
    assert_type(llm.generate(ids, seed=None), packlight.Completion)
    assert_type(llm.generate(["a", "b"], logit_bias={5: -1.0}), list[packlight.Completion])
    assert_type(llm.generate([[1, 2], [3]], n=2), list[packlight.Completion])
    assert_type(llm.generate([np.arange(3), np.arange(2)]), list[packlight.Completion])
    assert_type(llm.generate([ids, ids]), list[packlight.Completion])
    assert_type(llm.generate("a", n=count), list[packlight.Completion] | packlight.Completion)
    assert_type(llm.stream(ids, seed=1), packlight.Stream)
    assert_type(llm.chat("a", top_k=1), packlight.Completion)
    messages = [{"role": "user", "content": "a"}]
    assert_type(llm.chat(messages, stream=True, top_p=0.5), packlight.Stream)
    assert_type(llm.chat(messages, stream=flag), packlight.Completion | packlight.Stream)
    assert_type(llm.embed(["a", [1, 2]], pooling="last"), np.ndarray)
    assert_type(llm.embed(["a"], pooling="none"), list[np.ndarray])
    assert_type(llm.rerank("a", ["b", "c"]), np.ndarray)
    with packlight.load(None, context=512, slots=2, kv_type="f16") as again:
        assert_type(again, packlight.LLM)


def mistakes(llm: packlight.LLM) -> None:
    llm.generate("a", temprature=0.7)  # pyright: ignore[reportCallIssue]
    llm.generate("a", temperature="hot")  # pyright: ignore[reportArgumentType, reportCallIssue]
    llm.stream("a", max_tokens=1.5)  # pyright: ignore[reportArgumentType]
    llm.chat("a", stop=5)  # pyright: ignore[reportArgumentType]
    llm.embed(["a"], pooling="first")  # pyright: ignore[reportArgumentType, reportCallIssue]
    packlight.load("m.gguf", kv_type="q5_0")  # pyright: ignore[reportArgumentType]
    packlight.load("m.gguf", n_ctx=5)  # pyright: ignore[reportCallIssue]
    packlight.CompileConfig(contex=5)  # pyright: ignore[reportCallIssue]
