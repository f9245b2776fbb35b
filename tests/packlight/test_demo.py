"""The embedded model: what is promised of its file and card, and that it is what runs where no model is named."""

import json
import math
import re

import pytest
from running import SMALL, packlight, succeed, write_config

import packlight as api
from packlight import demo
from packlight.model.gguf.reader import open_gguf
from packlight.model.spec.config import ModelConfig
from packlight.perplexity import cut, measure
from packlight.prepared import prepare
from tools.train_demo import card, publish, vocabulary

RECORD = json.loads(demo.MODEL.with_name("record.json").read_text(encoding="utf-8"))
SAID = f"no --model: using the embedded demo model, {demo.MODEL.stat().st_size / 1e6:.1f} MB\n"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("demo") / "small.toml")


def test_the_file_is_small_and_its_matrices_are_packed():
    file = open_gguf(demo.MODEL)
    assert demo.MODEL.stat().st_size <= 4e6
    for info in file.tensors.values():
        assert info.format.name == "F32" if len(info.shape) == 1 else info.format.name in ("Q4_K", "Q6_K")
        assert info.shape[-1] % 256 == 0
    assert sum(math.prod(info.shape) for info in file.tensors.values()) == RECORD["parameters"]
    assert ModelConfig.from_gguf(file).context_length == RECORD["shape"]["context"]


def test_the_file_says_what_it_is():
    metadata = open_gguf(demo.MODEL).metadata
    assert metadata["general.name"] == "packlight demo"
    assert {f"general.{key}" for key in ("author", "description", "license", "languages")} <= set(metadata)


def test_conversations_are_what_it_was_trained_on():
    metadata = open_gguf(demo.MODEL).metadata
    assert metadata["tokenizer.chat_template"] == vocabulary.TEMPLATE
    assert [metadata["tokenizer.ggml.tokens"][i] for i in range(len(vocabulary.SPECIAL))] == list(vocabulary.SPECIAL)
    ends = [metadata[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot")]
    assert ends == [0, 0, vocabulary.END_ID]


def test_the_card_is_made_of_what_was_recorded():
    assert demo.MODEL.with_name("MODEL_CARD.md").read_text(encoding="utf-8") == card.text(RECORD)
    assert RECORD["files"]["Q4_K_M"]["bytes"] == demo.MODEL.stat().st_size


def test_it_answers_what_the_documentation_says(config):
    """Alone and in a chat; the answer is greedy, and int8 activations are far from another."""
    done = succeed(f"--config={config}", *publish.GREEDY)
    assert done.stdout.strip("\n") == RECORD["greedy"]
    assert RECORD["greedy"].startswith("Join one or more path segments intelligently.")
    assert SAID in done.stderr
    assert (RECORD["question"], demo.PROMPT) == (
        demo.QUESTION,
        vocabulary.conversation([(demo.QUESTION, "")])[: -len(vocabulary.END)],
    )
    talked = succeed("chat", f"--config={config}", *publish.GREEDY, stdin=f"{demo.QUESTION}\n".encode())
    assert talked.stdout.strip("\n") == RECORD["greedy"]
    assert SAID in talked.stderr


def test_what_it_was_not_trained_for_is_refused_by_its_template(config):
    done = packlight("chat", f"--config={config}", "--system=Be kind.", stdin=b"What does len do?\n")
    assert "the demo model knows the roles user and assistant, not system" in done.stderr
    assert done.stdout.strip() == ""


def test_without_any_arguments_it_answers_a_question_of_its_own():
    done = succeed()
    assert SAID in done.stderr
    assert f"no --prompt: asking {demo.QUESTION!r}\n" in done.stderr
    assert re.search("[a-z]+ [a-z]+", done.stdout)


def test_what_is_piped_in_is_the_prompt(config):
    arguments = (f"--config={config}", "--json", "--temperature=0", "--max_tokens=8")
    piped = json.loads(succeed(*arguments, stdin=b"Return the").stdout)
    assert piped["token_ids"] == json.loads(succeed(*arguments, "--prompt=Return the").stdout)["token_ids"]


@pytest.mark.parametrize("arguments", [("inspect",), ("compile",), ("embed", "--prompt=x")], ids=lambda a: a[0])
def test_commands_that_only_read_a_model_take_it(arguments, config):
    flags = () if arguments == ("inspect",) else (f"--config={config}",)
    assert SAID in succeed(*arguments, *flags).stderr


def test_an_empty_name_is_no_missing_one():
    done = packlight("--model=", "--prompt=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--model is missing" in done.stderr


def test_the_python_api_loads_it():
    llm = api.load(config=api.CompileConfig(**SMALL | {"prefill_buckets": (16,), "decode_batch": (2,)}))
    assert llm.file.path == str(demo.MODEL)
    assert llm.generate("Return", max_tokens=3, temperature=0).token_ids


@pytest.mark.product
def test_its_held_out_perplexity_is_the_recorded_one():
    held_out = demo.MODEL.with_name("held-out.txt").read_text(encoding="utf-8")
    prepared = prepare(demo.MODEL, context=512)
    *_, measured = measure(api.LLM(prepared), cut(prepared.tokenizer, held_out, 512, None), None)
    # int8 activations round differently with a machine's order of sums; that hardly moves a mean of thousands of tokens
    assert measured["perplexity"] == pytest.approx(RECORD["files"]["Q4_K_M"]["perplexity"], rel=2e-3)
