"""The Python API: prompts and batches, streams, stop strings, ends, seeds, logits, typed errors."""

import concurrent.futures
import dataclasses
import importlib.metadata
import itertools
import json
import pathlib
import warnings

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from demo_files import trained_model
from ggufs import NOISE, write_llama
from golden_models import shared
from golden_texts import golden_text
from running import SMALL, succeed, write_config

import packlight
from packlight.compile.config import MeshShape, default_config
from packlight.model.sampling.config import SamplingConfig
from packlight.prepared import prepare

PROMPTS = ["hello", "The rain in Spain stays mainly in the plain", "a", "\N{PILE OF POO}", "one two three"]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """(path, config): a model that writes noise of any bytes, served in two slots of 4096 tokens."""
    folder = tmp_path_factory.mktemp("noise")
    return write_llama(folder / "noise.gguf", **NOISE, seed=3), write_config(folder / "c.toml")


@pytest.fixture(scope="module")
def llm(noise):
    return packlight.load(*noise)


@pytest.fixture
def fresh(noise, llm):
    """A loaded model of the test's own, ending at the tokens it names."""

    def load(*end_tokens: int) -> packlight.LLM:
        prepared = prepare(*noise)
        prepared.tokenizer.eog_ids = frozenset(end_tokens)
        loaded = packlight.LLM(prepared)
        assert loaded.executables.misses == 0
        return loaded

    return load


def test_load_reports_progress_and_sizes(noise, llm):
    read, built = [], []
    again = packlight.load(*noise, lambda n, total: read.append((n, total)), lambda b, count: built.append((b, count)))
    assert sum(n for n, _ in read) == again.weights_bytes == llm.weights_bytes
    assert {total for _, total in read} == {again.weights_bytes}
    assert {b.key for b, _ in built} == set(again.plan.steps)
    assert {count for _, count in built} == {len(again.plan.steps)}
    assert all(b.hit for b, _ in built)
    assert again.timings.keys() == {"load_s", "compile_s"}


def test_each_prompt_of_a_batch_gets_what_it_gets_alone(llm):
    """Five prompts of mixed lengths in two slots: bit for bit, as the executables are the same."""
    alone = [llm.generate(prompt, **GREEDY) for prompt in PROMPTS]
    together = llm.generate(PROMPTS, **GREEDY)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]
    assert [c.prompt_token_ids for c in together] == [llm.encode(prompt) for prompt in PROMPTS]
    assert len({tuple(c.token_ids) for c in together}) == len(PROMPTS)


def test_threads_get_what_they_would_get_alone(llm):
    """Texts at once, then logits and vectors, which need a slot that is free."""
    alone = [llm.generate(prompt, **GREEDY).token_ids for prompt in PROMPTS]
    rows, vectors = llm.logits([5, 6, 7]), llm.embed(["hello"])
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda prompt: llm.generate(prompt, **GREEDY), PROMPTS))
        again, vector = pool.submit(llm.logits, [5, 6, 7]), pool.submit(llm.embed, ["hello"])
    assert [text.token_ids for text in texts] == alone
    assert np.array_equal(again.result(), rows)
    assert np.array_equal(vector.result(), vectors)


def test_ids_come_in_any_array(llm):
    ids = [5, 6, 7]
    told = llm.generate(ids, **GREEDY)
    for array in (np.array(ids, np.int32), jnp.array(ids), tuple(ids)):
        assert llm.generate(array, **GREEDY).token_ids == told.token_ids


def test_a_model_and_a_completion_say_what_they_are(llm):
    assert repr(llm).startswith("<packlight.LLM noise.gguf: llama, ")
    assert "context 4096, slots 2, cpu>" in repr(llm)
    completion = llm.generate("hello", max_tokens=3, seed=7)
    assert (str(completion), completion.seed) == (completion.text, 7)
    assert completion.usage == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    shown = dataclasses.replace(completion, text="<b> & more")._repr_html_()
    assert "&lt;b&gt; &amp; more" in shown
    assert "3 completion tokens" in shown
    assert packlight.__version__ == importlib.metadata.version("packlight")


def test_a_file_that_is_not_there_is_pythons_error_too(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.gguf: cannot open") as raised:
        packlight.load(tmp_path / "absent.gguf")
    assert isinstance(raised.value, packlight.GGUFError)


def test_draws_are_the_same_in_every_slot_and_process(llm, noise):
    drawn = {"temperature": 1.0, "seed": 7, "max_tokens": 20}
    alone = llm.generate("hello", **drawn)
    assert [c.token_ids for c in llm.generate(["hello"] * 3, **drawn)] == [alone.token_ids] * 3
    path, config = noise
    flags = ("--prompt=hello", "--temperature=1", "--seed=7", "--max_tokens=20", "--json")
    there = json.loads(succeed(f"--model={path}", f"--config={config}", *flags, own_process=True).stdout)
    assert there["compile"]["compiled"] == 0
    assert (there["token_ids"], there["text"]) == (alone.token_ids, alone.text)
    assert llm.generate("hello", **drawn | {"seed": 8}).token_ids != alone.token_ids
    other = [llm.generate("hello", **drawn | {"seed": None}).token_ids for _ in range(2)]
    assert other[0] != other[1]


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_joins_to_the_text(llm, seed):
    """R24; of noise with many characters cut between tokens."""
    drawn = {"temperature": 1.0, "seed": seed, "max_tokens": 40}
    completion = llm.generate("hello", **drawn)
    stream = llm.stream("hello", **drawn)
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            streamed = end.value
            break
    assert "".join(pieces) == completion.text == streamed.text
    assert all(pieces)
    assert streamed.token_ids == completion.token_ids
    raw = b"".join(llm.tokenizer.piece(i) for i in completion.token_ids)
    assert completion.text == raw.decode("utf-8", "replace")


def test_max_tokens_is_exact(llm):
    ids = llm.generate("hello", temperature=0, max_tokens=8).token_ids
    for count in range(1, 9):
        completion = llm.generate("hello", temperature=0, max_tokens=count)
        assert completion.token_ids == ids[:count]
        assert completion.finish_reason == "length"


def test_no_tokens_is_empty_text(llm):
    several = llm.generate(["hello", "a"], max_tokens=0)
    assert [(c.text, c.token_ids, c.finish_reason) for c in several] == [("", [], "length")] * 2
    assert list(llm.stream("hello", max_tokens=0)) == []
    assert several[0].timings["ttft_s"] is None


def test_the_end_token_first_is_empty_text(llm, fresh):
    first, second = llm.generate("hello", temperature=0, max_tokens=2).token_ids
    ended = fresh(first)
    completion = ended.generate("hello", temperature=0)
    assert (completion.text, completion.token_ids, completion.finish_reason) == ("", [], "stop")
    assert list(ended.stream("hello", temperature=0)) == []
    assert [c.text for c in ended.generate(["hello"] * 3, temperature=0)] == [""] * 3
    if second != first:
        completion = fresh(second).generate("hello", temperature=0)
        assert (completion.token_ids, completion.finish_reason) == ([first], "stop")


def test_a_full_context_ends_the_text(fresh):
    llm = fresh()  # no token ends it
    prompt = [5] * 4086
    completion = llm.generate(prompt, temperature=0)
    assert (len(completion.token_ids), completion.finish_reason) == (10, "length")
    assert llm.generate(prompt, temperature=0, max_tokens=11).token_ids == completion.token_ids
    assert len(llm.generate([5] * 4095, temperature=0).token_ids) == 1
    with pytest.raises(packlight.ContextLengthError, match=r"has 4096 tokens.*context of 4096; shorten it"):
        llm.generate([5] * 4096)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_a_stop_string_may_lie_across_pieces(llm, length):
    """R24: the text ends before it wherever it lies, also in the middle of pieces, and none of it was streamed."""
    text = llm.generate("hello", temperature=0, max_tokens=40).text
    for at in range(0, 12):
        stop = text[at : at + length]
        completion = llm.generate("hello", temperature=0, max_tokens=40, stop=[stop, "never to be seen"])
        assert (
            completion.text
            == text[: text.index(stop)]
            == "".join(llm.stream("hello", temperature=0, max_tokens=40, stop=[stop]))
        )
        assert completion.finish_reason == "stop"


def test_no_token_is_booked_after_a_stop_string(llm):
    """A step may bring the first two tokens of a request: the second is not the text's if the first ends it."""
    whole = llm.generate("hello", temperature=0, max_tokens=40)
    ends = list(itertools.accumulate(len(llm.tokenizer.piece(i)) for i in whole.token_ids))
    for at in range(8):
        stop = whole.text[at]
        completion = llm.generate("hello", temperature=0, max_tokens=40, stop=[stop])
        before = len(whole.text[: whole.text.index(stop)].encode())
        if "\ufffd" not in whole.text[: at + 1]:
            assert len(completion.token_ids) == next(n for n, end in enumerate(ends, 1) if end > before)


def test_stops_end_each_text_of_a_batch_by_itself(llm):
    whole = llm.generate(PROMPTS, **GREEDY)
    stop = whole[0].text[2]
    for one, all_of_it in zip(llm.generate(PROMPTS, **GREEDY, stop=[stop]), whole, strict=True):
        assert one.text == all_of_it.text.partition(stop)[0]


def test_a_closed_stream_frees_its_slot(llm):
    for _ in range(5):  # more often than there are slots
        stream = llm.stream("hello", temperature=0)
        next(stream)
        stream.close()
    assert llm.engine.idle
    llm.stream("hello", temperature=0)  # never started: takes none
    assert llm.engine.idle
    assert llm.generate("a", **GREEDY).token_ids == llm.generate(["a"], **GREEDY)[0].token_ids


def test_open_streams_take_turns(llm):
    """A stream that is left open neither stops nor spoils what is asked for next, and can be taken up again."""
    drawn = [{"temperature": 1.0, "seed": seed, "max_tokens": 15} for seed in range(3)]
    alone = [llm.generate("hello", **d).text for d in drawn]
    streams = [llm.stream("hello", **d) for d in drawn]  # one more than there are slots
    texts = ["", "", ""]
    for pieces in itertools.zip_longest(*streams, fillvalue=""):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert texts == alone
    left_open = llm.stream("hello", **drawn[0])
    begun = next(left_open)
    assert llm.generate("hello", **drawn[1]).text == alone[1]
    assert begun + "".join(left_open) == alone[0]
    assert llm.engine.idle


def test_a_prompt_may_be_ids(llm):
    ids = llm.encode("hello")
    expected = llm.generate("hello", **GREEDY).token_ids
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, np.uint16)):
        completion = llm.generate(prompt, **GREEDY)
        assert completion.token_ids == expected
        assert completion.prompt_token_ids == ids
    mixed = llm.generate([ids, "hello", np.array(ids)], **GREEDY)
    assert [c.token_ids for c in mixed] == [expected] * 3
    json.dumps(dataclasses.asdict(mixed[2]))


@pytest.mark.filterwarnings("ignore:the prompt begins with <s> twice")
@pytest.mark.parametrize("parse_special", [True, False])
def test_control_tokens_of_a_raw_prompt_are_read_as_asked(llm, parse_special):
    prompt, asked = "<s>a</s>", {} if parse_special else {"parse_special": False}
    ids = llm.encode(prompt, parse_special=parse_special)
    assert (llm.tokenizer.eos_id in ids) == parse_special
    assert [c.prompt_token_ids for c in llm.generate([prompt, prompt], max_tokens=0, **asked)] == [ids, ids]
    completions = []

    def keep():
        completions.append((yield from llm.stream(prompt, max_tokens=0, **asked)))

    assert list(keep()) == []
    assert completions[0].prompt_token_ids == ids


def test_a_prompt_that_spells_bos_has_it_twice_and_is_warned_of(llm, noise):
    """As llama.cpp's completion has it, and says so."""
    bos, said = llm.tokenizer.bos_id, "the prompt begins with <s> twice: the text has it, and the model's file adds one"
    with pytest.warns(UserWarning, match=f"^{said}$") as warned:
        done = llm.generate("<s>a", max_tokens=0)
    assert [each.filename for each in warned] == [__file__]
    assert done.prompt_token_ids[:2] == [bos, bos]
    with pytest.warns(UserWarning, match=f"^{said}$") as warned:
        llm.stream("<s>a")
    assert [each.filename for each in warned] == [__file__]
    path, config = noise
    done = succeed(f"--model={path}", f"--config={config}", "--prompt=<s>a", "--max_tokens=1")
    assert done.stderr.count(f"warning: {said}\n") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prompt in ("a<s>", " <s>a", [bos, bos, 5], ["a", "b"]):
            llm.generate(prompt, max_tokens=0)
        llm.generate("<s>a", parse_special=False, max_tokens=0)


def test_a_prompt_with_bos_twice_is_not_warned_of_where_the_file_adds_none(noise):
    prepared = prepare(*noise)
    prepared.tokenizer.add_bos = False
    bos = prepared.tokenizer.bos_id
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepared.prompts.answerable("<s><s>a", True)[:2] == [bos, bos]


def test_a_prompt_that_spells_an_end_token_has_it_twice_and_is_warned_of(noise):
    prepared = prepare(*noise)
    prepared.tokenizer.end_id = prepared.tokenizer.eos_id
    with pytest.warns(UserWarning, match="the prompt ends with </s> twice"):
        prepared.prompts.answerable("a</s>", True)


CHATTY = {"tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"}


def test_a_chat_streams_and_takes_a_text(noise, tmp_path):
    llm = packlight.load(write_llama(tmp_path / "chatty.gguf", **NOISE, seed=3, extra=CHATTY), noise[1])
    messages = [{"role": "user", "content": "hello"}]
    whole = llm.chat(messages, **GREEDY)
    assert llm.decode(whole.prompt_token_ids).endswith("[user]hello")
    assert llm.chat("hello", **GREEDY).token_ids == whole.token_ids
    for asked in (messages, "hello"):
        pieces = llm.chat(asked, stream=True, **GREEDY)
        assert next(pieces) + "".join(pieces) == whole.text
    for bad in ("", [], [("user", "hello")], {"role": "user", "content": "hello"}):
        with pytest.raises(packlight.ConfigError, match="message"):
            llm.chat(bad, stream=True)
    for given, words in (
        ({"temperature": -1}, "temperature"),  # not first when it is read
        ({"template": "chat.jinja"}, "template= is the text of .* it is no path, nor 'chat.jinja'"),
        ({"template": pathlib.Path("chat.jinja")}, "template= is the text of "),
        ({"tools": "be kind"}, "tools are a list, not 'be kind'"),
        ({"system": "be kind"}, "'system'; did you mean 'messages'"),
    ):
        with pytest.raises(packlight.ConfigError, match=words):
            llm.chat("hello", stream=True, **given)
    with pytest.raises(packlight.ConfigError, match="; messages are for chat$"):
        llm.generate(messages)


def test_a_closed_model_holds_no_memory_and_says_that_it_is_closed(noise):
    def held():
        return sum(array.nbytes for array in jax.live_arrays())

    with packlight.load(*noise) as llm:
        stream = llm.stream("hello", temperature=0)
        next(stream)
        before = held()
    assert before - held() == llm.memory.weights + llm.kv_bytes
    for ask in (
        lambda: llm.generate("hello"),
        lambda: llm.logits([5]),
        lambda: llm.embed(["hello"]),
        lambda: next(stream),
        lambda: list(llm.stream("hello")),
    ):
        with pytest.raises(packlight.PacklightError, match="^the model is closed$"):
            ask()
    llm.close()


def test_logits_lead_to_the_greedy_token(llm):
    ids = llm.encode("hello")
    generated = llm.generate(ids, **GREEDY).token_ids
    logits = llm.logits(ids + generated)
    assert (logits.shape, logits.dtype) == ((len(ids) + 12, llm.model.vocab_size), np.float32)
    assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == generated
    assert llm.logits([5] * 640).shape == (640, llm.model.vocab_size)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        ([-1], "token id -1 is outside the vocabulary of 320"),
        ([5, 320], "token id 320 is outside"),
        ([5, 1.5], "list of token ids"),
        ([1.5], "list of token ids"),
        (None, "a prompt is text or a list of token ids, not None"),
        (b"hello", "a prompt is text"),
        (np.zeros((2, 2), int), "a prompt is text"),
        (np.zeros(3), "a prompt is text"),
    ],
)
def test_prompts_that_make_no_sense_are_typed_errors(llm, prompt, words):
    for call in (llm.generate, llm.logits, llm.stream):
        with pytest.raises(packlight.ConfigError, match=words):
            call(prompt)


def test_one_bad_prompt_of_a_batch_is_a_typed_error(llm):
    for prompts, words in (
        (["hello", ""], "the prompt is empty"),
        ([[5], []], "the prompt is empty"),
        ([[5], [2**70]], "outside the vocabulary"),
        (["hello", None], "a prompt is text"),
    ):
        with pytest.raises(packlight.ConfigError, match=words):
            llm.generate(prompts)
        with pytest.raises(packlight.ConfigError, match="a prompt is text"):
            llm.stream(prompts)  # it takes one prompt
    with pytest.raises(packlight.ContextLengthError):
        llm.generate(["hello", [5] * 4096])
    assert llm.engine.idle


def test_bad_values_are_typed_errors_at_the_call(llm):
    for bad in ({"max_tokens": -1}, {"temperature": float("nan")}, {"stop": "abc"}, {"top_p": "0.5"}, {"seed": 2**32}):
        for call in (llm.generate, llm.stream):
            with pytest.raises(packlight.ConfigError, match=next(iter(bad))):
                call("hello", **bad)
    with pytest.raises(packlight.ContextLengthError):
        llm.stream([5] * 4096)  # not first when it is read
    with pytest.raises(packlight.ContextLengthError, match="4097 tokens"):
        llm.logits([5] * 4097)
    assert issubclass(packlight.ContextLengthError, packlight.PacklightError)


def test_files_and_configs_are_typed_errors(noise, tmp_path):
    path, config = noise
    cases = [
        (packlight.GGUFError, tmp_path / "absent", config),
        (packlight.UnsupportedError, write_llama(tmp_path / "a", extra={"general.architecture": "martian"}), config),
        (packlight.ConfigError, path, tmp_path / "absent.toml"),
        (packlight.ConfigError, path, packlight.CompileConfig(context=4097)),
    ]
    for error, file, settings in cases:
        with pytest.raises(error):
            packlight.load(file, settings)
    with pytest.raises(packlight.ConfigError, match="'platform' is 'tpu'"):
        packlight.load(path, packlight.CompileConfig(platform="tpu"))


def test_every_shipped_config_leaves_the_context_to_the_file(noise):
    """`Prepared.context` counts on it, to know the context before jax says which platform it is."""
    for platform in ("cpu", "gpu", "tpu"):
        assert default_config(platform).context == 0
    assert prepare(noise[0]).context == prepare(noise[0]).plan.context == 4096
    assert prepare(noise[0], packlight.CompileConfig(context=640)).context == 640
    assert prepare(*noise, context=100).plan.context == 100


def test_slots_and_kv_type_replace_what_the_config_says(noise):
    """R32: by the names of llama.cpp and of the config; what is impossible is named."""
    config = packlight.CompileConfig(decode_batch=(1, 4, 8))
    prepared = prepare(noise[0], config, slots=5, kv_type="f16")
    assert (prepared.plan.decode_batch, prepared.config.kv_dtype) == ((1, 4, 5), "float16")
    assert prepare(noise[0], config, slots=1, kv_type="bfloat16").plan.decode_batch == (1,)
    whole = prepare(noise[0], config, kv_type="f32").memory.cache
    assert prepare(noise[0], config, kv_type="f16").memory.cache == (whole + 4 * 8) // 2
    for given, words in (
        ({"slots": 0}, "slots=0: it is an integer of at least 1"),
        ({"slots": True}, "slots=True: it is an integer of at least 1"),
        ({"kv_type": "q5_0"}, "kv_type=q5_0: it is one of f32, f16, bf16, "),
    ):
        with pytest.raises(packlight.ConfigError, match=words):
            packlight.load(noise[0], config, **given)
    odd = packlight.CompileConfig(decode_batch=(2,), mesh=MeshShape(2, 1))
    with pytest.raises(packlight.ConfigError, match="slots=3: no multiple of the mesh's 2 data groups"):
        prepare(noise[0], odd, slots=3)


@pytest.mark.parametrize("name", ["demo/Q4_K_M", *shared(["models/stories260K-k256-Q4_K_M"])])
def test_golden_logits(name, tmp_path):
    """The same rule as for the forward pass: within 1e-3 of the logits' standard deviation of llama.cpp's."""
    path, golden = trained_model(name, tmp_path), golden_text(name)
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in SMALL.items()}
    llm = packlight.load(path, packlight.CompileConfig(**settings, cpu_kernels="xla"))
    assert llm.encode(golden.prompt) == golden.ids
    logits, expected = llm.logits(golden.ids)[:, :: golden.columns], golden.logits_f32
    assert np.abs(logits - expected).max() <= 1e-3 * expected.std()
    completion = llm.generate(golden.prompt, temperature=0, max_tokens=64)
    assert completion.token_ids == golden.greedy_ids_f32.tolist()
    assert completion.text == golden.text_f32
    assert completion.text[0] in " ,"  # what the first piece begins with is kept, also a space


def test_the_tokenizer_reads_no_weights(noise, llm, tmp_path):
    tokenizer = packlight.Tokenizer.from_gguf(noise[0])
    for text in PROMPTS:
        assert tokenizer.encode(text) == llm.encode(text)
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text
    assert llm.encode("hello", add_special=False) == llm.encode("hello")[1:]
    with pytest.raises(packlight.GGUFError):
        packlight.Tokenizer.from_gguf(tmp_path / "absent")


def test_what_is_no_text_and_no_token_is_a_typed_error(llm):
    for call, words in (
        (lambda: llm.encode(5), "a text to encode is a str, not 5"),
        (lambda: llm.encode(b"x"), "a text to encode is a str, not b'x'"),
        (lambda: llm.decode(5), "token ids to decode are a list, not 5"),
        (lambda: llm.decode("x"), "token id 'x' is not in 0..319"),
        (lambda: llm.decode([1.5]), "token id 1.5 is not in 0..319"),
        (lambda: llm.embed(5), "embed wants a list of texts"),
        (
            lambda: packlight.load(config={"context": 5}),
            "config is a path, a name or a CompileConfig, not {'context': 5}",
        ),
        (lambda: packlight.CompileConfig(mesh={"model": 2}), "'mesh' is a table of data and tensor"),
    ):
        with pytest.raises(packlight.ConfigError, match=words):
            call()
    assert packlight.CompileConfig(mesh={"data": 2}, decode_batch=(2,)).mesh == MeshShape(2, 1)
    assert np.array_equal(llm.embed(text for text in ("hello", "a")), llm.embed(["hello", "a"]))


def test_unpack_rows():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 4, 2 * 18), np.uint8)
    blocks[..., [1, 19]] = 0x34  # scales are finite
    values = packlight.unpack(blocks, "Q4_0")
    expected = gguf.quants.dequantize(blocks.reshape(12, -1), gguf.GGMLQuantizationType.Q4_0).reshape(3, 4, 64)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    assert packlight.unpack(blocks[0, 0], "Q4_0").shape == (64,)
    assert packlight.unpack(np.zeros((0, 18), np.uint8), "Q4_0").shape == (0, 32)
    with pytest.raises(packlight.UnsupportedError, match=r"'Q9_Z'.*Q4_0"):
        packlight.unpack(blocks, "Q9_Z")
    for bad in (blocks[..., :17], blocks.astype(np.int32), np.uint8(3)):
        with pytest.raises(ValueError, match="Q4_0 blocks are uint8 rows of a multiple of 18 bytes"):
            packlight.unpack(bad, "Q4_0")


def test_the_documented_defaults_are_the_ones_used(llm):
    assert SamplingConfig() == SamplingConfig(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05)
    spelled = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    given = {"seed": 3, "max_tokens": 30}
    assert llm.generate("hello", **given).token_ids == llm.generate("hello", **given, **spelled).token_ids


def test_a_path_may_have_spaces_and_any_script(noise, tmp_path):
    path = tmp_path / "das Modell \N{SNOWMAN}.gguf"
    path.write_bytes(noise[0].read_bytes())
    assert packlight.load(path, noise[1]).executables.misses == 0
    assert packlight.inspect(str(path))["path"].endswith("das Modell \N{SNOWMAN}.gguf")


# ---- the sampling chain, through the engine


CHANGES = [
    {"repeat_penalty": 1.5},
    {"frequency_penalty": 1.0, "presence_penalty": 1.0, "repeat_last_n": -1},
    {"dry_multiplier": 2.0, "dry_allowed_length": 1},
    {"typical_p": 0.3},
    {"top_n_sigma": 0.5},
    {"xtc_probability": 1.0, "xtc_threshold": 0.001},
    {"dynatemp_range": 0.7},
    {"mirostat": 1},
    {"mirostat": 2, "mirostat_tau": 1.0},
    {"logit_bias": {17: 100.0}},
    {"logprobs": 3},
    {"ignore_eos": True},
]


def test_every_sampler_runs_beside_others_and_none_compiles(llm):
    """Each setting gives in a batch, beside every other one, what it gives alone, and only the arguments differ."""
    from packlight.compile.counter import CompileCounter

    plain = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 5, "max_tokens": 16}
    with CompileCounter() as compiled:
        reference = llm.generate("hello hello", **plain).token_ids
        for changes in CHANGES:
            alone = llm.generate("hello hello", **plain | changes)
            assert len(alone.token_ids) == 16 or alone.finish_reason == "stop"
            neighbour = llm.stream("a neighbour", seed=1, max_tokens=30, mirostat=2, repeat_penalty=1.1)
            next(neighbour)
            assert llm.generate("hello hello", **plain | changes).token_ids == alone.token_ids, changes
            neighbour.close()
            if not {"logprobs", "ignore_eos"} & set(changes):
                assert alone.token_ids != reference, changes
    assert compiled.count == 0


def test_a_penalty_on_everything_said_repeats_nothing(llm):
    ids = llm.generate("hello", temperature=0, max_tokens=100, presence_penalty=1e6, repeat_last_n=-1).token_ids
    assert len(set(ids)) == len(ids) > 10
    assert not set(ids) & set(llm.encode("hello"))  # what the prompt said counts


def test_ignoring_the_end_goes_past_it(fresh, llm):
    ids = llm.generate("hello", temperature=0, max_tokens=8).token_ids
    loaded = fresh(ids[3])
    assert loaded.generate("hello", temperature=0, max_tokens=8).finish_reason == "stop"
    past = loaded.generate("hello", temperature=0, max_tokens=8, ignore_eos=True)
    assert (past.finish_reason, len(past.token_ids)) == ("length", 8)
    assert ids[3] not in past.token_ids


def test_logprobs_are_the_models_own(llm):
    completion = llm.generate("hello", temperature=1.5, seed=2, max_tokens=6, logprobs=4, logit_bias={9: 3.0})
    logits = llm.logits(completion.prompt_token_ids + completion.token_ids)
    below = logits - logits.max(1, keepdims=True)
    logp = below - np.log(np.exp(below).sum(1, keepdims=True))
    assert completion.logprobs is not None
    assert [p.token_id for p in completion.logprobs] == completion.token_ids
    first = len(completion.prompt_token_ids) - 1
    bound = 2e-4 * float(logits.std())
    for row, said in enumerate(completion.logprobs, first):
        # decode and prefill are different executables, 1e-4 of the logits' deviation apart: here twice, as in a sum
        assert said.logprob == pytest.approx(logp[row, said.token_id], abs=bound)
        best = np.argsort(-logp[row])[:4]
        assert [top.token_id for top in said.top_logprobs] == best.tolist()
        assert [top.logprob for top in said.top_logprobs] == pytest.approx(logp[row, best].tolist(), abs=bound)
        for each in (said, *said.top_logprobs):
            assert bytes(each.bytes) == llm.tokenizer.piece(each.token_id)
            assert each.token == bytes(each.bytes).decode(errors="replace")
    assert llm.generate("hello", max_tokens=1).logprobs is None
    scored = llm.generate(completion.prompt_token_ids + completion.token_ids, prompt_logprobs=4, max_tokens=0)
    assert scored.prompt_logprobs is not None
    for said, chosen in zip(scored.prompt_logprobs[first + 1 :], completion.logprobs, strict=True):
        assert said is not None
        assert (said.token_id, said.bytes) == (chosen.token_id, chosen.bytes)
        assert said.logprob == pytest.approx(chosen.logprob, abs=bound)
    assert completion.prompt_logprobs is None


def test_several_completions_of_a_prompt(llm):
    several = llm.generate("hello", n=3, seed=7, max_tokens=10)
    assert len(several) == 3
    assert [c.token_ids for c in several] == [
        llm.generate("hello", seed=seed, max_tokens=10).token_ids for seed in (7, 8, 9)
    ]
    both = llm.generate(["hello", "a"], n=2, seed=7, max_tokens=4)
    assert [c.prompt_token_ids for c in both] == [llm.encode(p) for p in ("hello", "hello", "a", "a")]
    for n in (0, True, 1.5):
        with pytest.raises(packlight.ConfigError, match="n must be an integer of at least 1"):
            llm.generate("hello", n=n)


def test_a_bias_of_no_token_is_refused(llm):
    size = llm.model.vocab_size
    with pytest.raises(packlight.ConfigError, match=f"logit_bias of token id {size}: the vocabulary has {size}"):
        llm.generate("hello", logit_bias={size: 1.0})
