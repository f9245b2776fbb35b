"""The command line without a model run: every mistake is one line and exit code 2, told before jax is imported."""

import json
import re
import struct
import subprocess

import hostile
import numpy as np
import pytest
from badmodels import poked
from ggufs import write_llama
from running import COMMAND, packlight, succeed, without_jax, write_config

import packlight as packlight_api
from packlight.cli import tables
from packlight.cli.commands import COMMANDS
from packlight.model.gguf.reader import NOT_WEIGHTS, open_gguf

TINY = {"layers": 1, "embed": 32, "vocab": 270}


@pytest.fixture(scope="module")
def no_jax(tmp_path_factory):
    """Variables under which importing jax ends the process with a traceback."""
    folder = tmp_path_factory.mktemp("poison")
    folder.joinpath("jax.py").write_text("raise ImportError('jax was imported')\n")
    return {"PYTHONPATH": str(folder)}


def _renamed(path, token):
    """A file's tokens, of which one has another name."""
    tokens = [*open_gguf(path).metadata["tokenizer.ggml.tokens"]]
    return [*tokens[:token], "another", *tokens[token + 1 :]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files to make mistakes with, by name."""
    folder = tmp_path_factory.mktemp("files")
    good = write_llama(folder / "good.gguf", **TINY)
    raw = good.read_bytes()

    def damaged(name: str, content: bytes):
        path = folder / f"{name}.gguf"
        path.write_bytes(content)
        return path

    named = struct.pack("<Q", 18) + b"output_norm.weight" + struct.pack("<IQ", 1, 32)
    at = raw.index(named) + len(named)
    bpe = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "martian", "tokenizer.ggml.merges": ["a b"]}
    return {
        "good": good,
        "folder": folder,
        "absent": folder / "absent.gguf",
        "text": damaged("text", b"Once upon a time there was a file that held a story.\n" * 9),
        "empty": damaged("empty", b""),
        "truncated": damaged("truncated", raw[:-100]),
        "alike": write_llama(folder / "alike.gguf", **TINY, seed=1),
        "larger": write_llama(folder / "larger.gguf", **TINY | {"vocab": 400}),
        "renamed": write_llama(folder / "renamed.gguf", **TINY, extra={"tokenizer.ggml.tokens": _renamed(good, 266)}),
        "no_bos": write_llama(folder / "no_bos.gguf", **TINY, extra={"tokenizer.ggml.add_bos_token": False}),
        "format": damaged("format", raw[:at] + struct.pack("<I", 99) + raw[at + 4 :]),
        "nan": damaged("nan", poked(raw, "blk.0.ffn_up.weight", 3, 0, np.float16("nan").tobytes())),
        "architecture": write_llama(folder / "arch.gguf", **TINY, extra={"general.architecture": "martian"}),
        "pre": write_llama(folder / "pre.gguf", **TINY, extra=bpe),
        "tensor": write_llama(folder / "tensor.gguf", **TINY, omit=["blk.0.attn_q.weight"]),
        "unknown_key": write_config(folder / "key.toml", shoe_size=43),
        "bad_value": write_config(folder / "value.toml", decode_batch=[0]),
        "bad_toml": damaged("toml", b"platform = = 'cpu'\n"),
        "\n": folder / "new\nline.gguf",
    }


MISTAKES = [
    # arguments, where {name} is a file of `files`; what the line must hold
    ("--model= --prompt=x", "--model is missing"),
    ("--model={good}", "--prompt is missing"),
    ("--model={good} --prompt=x --prompt_file={text}", "either --prompt or --prompt_file"),
    ("--model={good} --prompt_file={absent}", "--prompt_file=.*absent.gguf: No such file"),
    ("--model={absent} --prompt=x", "absent.gguf: .*No such file"),
    ("--model={folder} --prompt=x", "a directory"),
    ("--model={text} --prompt=x", "text.gguf: not a GGUF file"),
    ("--model={empty} --prompt=x", "empty.gguf: "),
    ("--model={truncated} --prompt=x", "truncated.gguf: tensor 'output.weight'"),
    ("--model={architecture} --prompt=x", "unknown architecture 'martian'.*are supported .*llama"),
    ("--model={format} --prompt=x", "'output_norm.weight'.* 99"),
    ("--model={pre} --prompt=x", "pre-tokenizer 'martian'.*supported: "),
    ("--model={tensor} --prompt=x", "tensor 'blk.0.attn_q.weight' is missing"),
    ("--model={nan} --prompt=x", "tensor 'blk.0.ffn_up.weight': block 3 .*NaN"),
    ("--model={nan} --prompt=x --json", "tensor 'blk.0.ffn_up.weight': block 3 .*NaN"),
    ("--model={\n} --prompt=x", r"new\\nline.gguf: .*No such file"),
    ("--model={good} --prompt=", "the prompt is empty"),
    ("--model={good} --prompt=" + 130 * "the.", r"the prompt has \d+ tokens.*context of 128"),
    ("--model={good} --context=8 --prompt=" + 8 * "the.", "context of 8; shorten it, or load with up to --context=128"),
    ("--model={good} --prompt=\udcff", "--prompt is not UTF-8"),
    ("--model={good} --prompt=x --config={unknown_key}", "key.toml: unknown key 'shoe_size'; known: .*platform"),
    ("--model={good} --prompt=x --config={bad_value}", "value.toml: config key 'decode_batch' is 0"),
    ("--model={good} --prompt=x --config={bad_toml}", "toml.gguf: .*line 1"),
    ("--model={good} --prompt=x --config={absent}", "absent.gguf.*No such file"),
    ("--model={good} --prompt=x --config={folder}", "directory"),
    (
        "--model={good} --prompt=x --context=129",
        "--context=129: the model has only 128; --rope_scaling=yarn and --rope_scale=2 would stretch it",
    ),
    ("--model={good} --prompt=x --context=257 --rope_scale=2", "--context=257: the model has only 256"),
    ("--model={good} --prompt=x --rope-scaling=ntk", "--rope_scaling=ntk: it is one of none, linear, yarn"),
    ("--model={good} --prompt=x --rope-scale=nan", "--rope_scale=nan: it is a number from 0.001 to 100000"),
    ("--model={good} --prompt=x --rope_scaling=yarn", "--rope_scaling=yarn: a factor of 1 .*; give --rope_scale=N"),
    ("--model={good} --prompt=x --yarn_ext_factor=x", "--yarn_ext_factor=x is not a number"),
    ("--model={good} --prompt=x --context=-1", "--context=-1: it is an integer of at least 0"),
    ("--model={good} --prompt=x --slots=0", "--slots=0: it is an integer of at least 1"),
    (
        "--model={good} --prompt=x --weights_ahead=1",
        "--weights_ahead=1 is of streamed weights only: --weights=streamed",
    ),
    (
        "--model={good} --prompt=x --weights=streamed --weights_budget=-1",
        "--weights_budget=-1: it is an integer of at least 0",
    ),
    (
        "--model={good} --prompt=x --weights=streamed --weights_ahead=9999",
        "--weights_ahead=9999: at most 1024",
    ),
    (
        "--model={good} --prompt=x --weights=streamed --weights-budget=9",
        "--weights_budget=9 allows 0.0 MB for streamed weights; [0-9,]+ bytes are the least, with 2 layers ahead",
    ),
    ("--model={good} --prompt=x --kv_type=q5_0", "--kv_type=q5_0: it is one of f32, f16, bf16"),
    ("--model={good} --prompt=x --weights=mmap", "--weights=mmap: it is one of resident, mapped"),
    (
        "--model={good} --prompt=x --device=gpu --weights=mapped",
        "--weights=mapped: weights are mapped for one CPU device",
    ),
    (
        "--model={good} --prompt=x --draft_model={renamed}",
        "--draft_model=.*renamed.gguf: token 266 is 'another', and '.*' in .*good.gguf; drafts need the same tokens",
    ),
    (
        "--model={good} --prompt=x --draft_model={larger}",
        "--draft_model=.*larger.gguf: it has 400 tokens, more than 128 from the 270 in .*good.gguf",
    ),
    (
        "--model={good} --prompt=x -md {no_bos}",
        "--draft_model=.*no_bos.gguf: the bos token that texts get is none, and 1 in .*good.gguf",
    ),
    ("--model={good} --prompt=x --draft_model={pre}", "pre.gguf: .*martian"),
    ("--model={good} --prompt=x --draft_model={absent}", "absent.gguf.*No such file"),
    ("--model={good} --prompt=x --draft_model=", "--draft_model= is the file or the name of a model"),
    (
        "--model={good} --prompt=x --draft_model={alike} --speculate=0",
        "--draft_model=.*alike.gguf has no use: --speculate=0",
    ),
    ("--model={good} --prompt=x --draft_model={alike} --config=mesh8", "alike.gguf: it runs on one device, not on a"),
    ("--model={good} --prompt=x --max_tokens=-2", "max_tokens must be between 0 and .*-2"),
    ("--model={good} --prompt=x --temperature=nan", "temperature must be .*nan"),
    ("--model={good} --prompt=x --top_p=2", "top_p must be between 0 and 1"),
    ("--model={good} --prompt=x --seed=-2", "seed must be between"),
    ("--model={good} --prompt=x --stop=", "stop must not hold an empty string"),
    ("--model={good} --prompt=x --top_k=many", "--top_k=many is not an integer"),
    ("--model={good} --prompt=x --min_p=much", "--min_p=much is not a number"),
    ("--model={good} --prompt=x --mirostat=3", "mirostat must be between 0 and 2"),
    ("--model={good} --prompt=x --logit_bias=five", "--logit_bias=five is not TOKEN_ID"),
    ("--model={good} --prompt=x --logit_bias=9999+1", "logit_bias of token id 9999: the vocabulary has 270"),
    ("--model={good} --prompt=x --logprobs=2", "--logprobs is for --json"),
    ("--model={good} --prompt=x --prompt_logprobs=2", "--prompt_logprobs is for --json"),
    ("--model={good} --prompt=x --regex=a --grammar=b", "json_schema, regex and grammar exclude each other"),
    ("--model={good} --prompt=x --regex=(", "regex: .*unclosed group"),
    ("--model={good} --prompt=x --json_schema=@{absent}", "--json_schema=.*absent.gguf: No such file"),
    ("--json=perhaps", "--json=perhaps is not true or false"),
    ("--model={good} --max_token=1", "'--max_token'.*'--max_tokens'"),
    ("--model={good} --shoe_size=43", "'--shoe_size'.*--help"),
    ("--model={good} --undefok=shoe_size --shoe_size=43", "'--undefok'"),
    ("--flagfile={text}", "'--flagfile'"),
    ("--model={good} --prompt", "--prompt"),
    ("--model={good} --prompt=x stray", "'stray'"),
    ("generate inspect --model={good}", "'inspect'"),
    ("inspect --model={good} --prompt=x", "'--prompt'"),
    ("inspect --model=", "--model is missing"),
    ("chat --model=", "--model is missing"),
    ("quantize --type=Q4_K_M", "--model is missing"),
    ("perplexity", "either --file.* or --kl_divergence"),
    ("inspect --model={text}", "text.gguf: not a GGUF file"),
    ("compile --model={tensor}", "tensor 'blk.0.attn_q.weight' is missing"),
    ("tokenize --model={good}", "--prompt is missing: the text to cut into tokens"),
    ("tokenize --model={absent} --prompt=x", "absent.gguf: .*No such file"),
    ("tokenize --model={good} --prompt=x --prompt_file={text}", "either --prompt or --prompt_file"),
    ("cache lst", "packlight cache 'lst' is unknown; did you mean 'list'.; there are: list, prune, clear"),
    ("cache prune --config={absent}", "absent.gguf.*No such file"),
    ("cache list prune", "unexpected argument 'prune'"),
    ("cache list --dry_run", "--dry_run is for prune and clear"),
    ("cache --dry_run", "--dry_run is for prune and clear"),
    ("config show --device=foo", "--device=foo is none of cpu, gpu, tpu"),
    ("config show --threads=2", "unknown flag '--threads'"),
    ("config show --rope_scale=2", "unknown flag '--rope_scale'"),
    ("config show --config={unknown_key}", "key.toml: unknown key 'shoe_size'"),
    ("config show --model={good} --context=129", "'context' is 129; the model has only 128"),
    ("config show --device=gpu --config=cpu", "--device=gpu but the platform of --config=cpu is cpu"),
    ("completion", "for which shell. packlight completion bash|zsh|fish"),
    ("completion tcsh", "packlight completion 'tcsh' is unknown.*; there are: bash, zsh, fish"),
    ("embed --model={good}", "either --prompt.* or --file"),
    ("embed --model={good} --prompt=x --pooling=median", "pooling 'median' is unknown; there are: mean, cls"),
    ("embed --model={good} --prompt=x --pooling=none", "--pooling=none is for --json"),
    ("embed --model={good} --prompt=x --pooling=rank", "pooling 'rank' needs the head of a reranker"),
    ("rerank --model={good} --query=x", "give --query, a text, and --file"),
    ("rerank --model={good} --query=x --file={text}", "pooling 'rank' needs the head of a reranker"),
    ("embed --model={good} --file={empty}", "holds no text"),
    ("embed --model={good} --prompt=" + 130 * "the.", r"the text has \d+ tokens; the context holds 128"),
    ("perplexity --model={good}", "either --file.* or --kl_divergence"),
    ("perplexity --model={good} --file={text} --kl_divergence={text}", "either --file.* or --kl_divergence"),
    ("perplexity --model={good} --file={text} --context=3", "--context=3 is less than 4"),
    ("perplexity --model={good} --file={text} --context=512", "--context=512: the model has only 128"),
    ("perplexity --model={good} --file={text} --chunks=0", "--chunks=0 is less than 1"),
    ("perplexity --model={good} --file={empty} --context=64", "the text has 1 tokens; .* chunks of 64 needs 128"),
    ("perplexity --model={good} --file={absent} --context=64", "--file=.*absent.gguf: No such file"),
    ("perplexity --model={good} --kl_divergence={text}", "text.gguf: not a file of base predictions"),
    ("perplexity --model={good} --kl_divergence={absent}", "absent.gguf: No such file"),
    ("perplexity --model={good} --kl_divergence={text} --context=9", "no --save_logits, no --context"),
    (
        "martian",
        f"unknown command 'martian'; there are: {', '.join(COMMANDS)}",
    ),
]


def arguments(line: str, files: dict) -> list[str]:
    return [re.sub(r"\{([^}]+)\}", lambda name: str(files[name[1]]), word) for word in line.split(" ")]


@pytest.fixture(scope="module")
def told(files, tmp_path_factory):
    """What every line of MISTAKES gives, in one process for all of them."""
    lines = [line for line, _ in MISTAKES]
    done = without_jax(tmp_path_factory.mktemp("told"), [arguments(line, files) for line in lines])
    return dict(zip(lines, done, strict=True))


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line[:60] for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(line, words, told):
    done = told[line]
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"(memory: [^\n]+\n)?error: [^\n]+\n", done.stderr), done.stderr
    assert re.search(words, done.stderr), done.stderr


def test_a_mistake_is_the_exit_code_of_the_process(files, no_jax):
    done = packlight(*arguments("--model={absent} --prompt=x", files), **no_jax)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)


def test_a_device_that_is_not_there_is_an_error(files, tmp_path):
    """R26. On a machine that has such a device, another one that it lacks would have to stand here."""
    config = write_config(tmp_path / "gpu.toml", platform="gpu")
    done = packlight("--prompt=x", f"--model={files['good']}", f"--config={config}", JAX_PLATFORMS="cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch("error: config key 'platform' is 'gpu'; jax finds only: cpu\n", done.stderr), done.stderr


@pytest.mark.parametrize("arguments", ["--help", "-h", "help", "generate --help", "inspect --model=x --help"])
def test_help_is_for_a_terminal(arguments, no_jax):
    done = succeed(*arguments.split(), **no_jax)
    assert done.stderr == ""
    assert "--model" in done.stdout
    assert all(len(text) <= 80 for text in done.stdout.splitlines())


def test_inspect_needs_no_jax_and_prints_tables(files, no_jax):
    text = succeed("inspect", f"--model={files['good']}", "--verbose", **no_jax).stdout
    assert re.search(r"^blk.0.ffn_up.weight +96 x 32 +Q8_0 +3,264  native$", text, re.M)
    assert re.search(r"^rope_scaling.kind +none$", text, re.M)
    assert re.search(r"^tokenizer.ggml.tokens +\[270 elements: '<unk>', ", text, re.M)
    assert text.endswith("unsupported: nothing\n")
    assert all(len(line) <= 160 for line in text.splitlines())
    assert not re.search(" $", text, re.M)


def test_inspect_prints_one_json_object(files, no_jax):
    done = succeed("inspect", f"--model={files['good']}", "--json", **no_jax)
    report = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert report["formats"]["Q8_0"]["tensors"] == 9
    assert report["unsupported"] == []


def test_inspect_names_what_is_unsupported(files):
    done = succeed("inspect", f"--model={files['architecture']}", "--verbose")
    assert re.search("^unsupported: .*unknown architecture 'martian'", done.stdout, re.M)
    assert re.search(r"^  runs here      no: .*unknown architecture\s+'martian'", done.stdout, re.M)


@pytest.mark.parametrize("key", ["general.name", "general.tags", "test.unread", "tokenizer.chat_template"])
def test_inspect_says_which_text_is_not_utf_8(tmp_path, key):
    extra = {key: ("[str]", ["a", b"caf\xe9"]) if key == "general.tags" else ("str", b"caf\xe9")}
    path = write_llama(tmp_path / "m.gguf", **TINY, extra=extra)
    assert f"  not UTF-8      {key}\n" in succeed("inspect", f"--model={path}").stdout
    text = succeed("inspect", f"--model={path}", "--verbose").stdout
    assert text.count(f"\nnot UTF-8, its bytes are shown as \\xHH: {key}\n") == text.count("\nnot UTF-8") == 1
    assert re.search(rf"^{key} .*caf\\+xe9", text, re.M)
    assert text.endswith("unsupported: nothing\n")


@pytest.mark.parametrize("type_id", NOT_WEIGHTS)
def test_inspect_lists_tensors_that_hold_no_weights(tmp_path, type_id):
    """And says that the file does not run, naming one."""
    fmt = NOT_WEIGHTS[type_id]
    path = tmp_path / "m.gguf"
    path.write_bytes(hostile.gguf((), [hostile.info("ids", [256, 2], type_id, 0)], bytes(4096)))
    report = packlight_api.inspect(path)
    (tensor,) = report["tensors"]
    nbytes = {"Q8_1": 576, "Q8_K": 584, "I8": 512, "I16": 1024, "I32": 2048, "I64": 4096, "F64": 4096}[fmt.name]
    assert (tensor["format"], tensor["shape"], tensor["bytes"], tensor["path"]) == (fmt.name, [2, 256], nbytes, None)
    assert (report["parameters"], report["formats"]) == (0, {fmt.name: {"tensors": 1, "bytes": nbytes}})
    assert f"tensor 'ids' is of type {fmt.name} ({type_id}), which holds no weights" in report["unsupported"][0]
    assert f"{fmt.name}" in tables.inspect_text(report)


def test_metadata_steers_no_terminal_and_stays_json(tmp_path):
    extra = {"general.name": "a\x1b[31m\nb" + 500 * "x", "test.nan": float("nan"), "test.key\x1b[31m": 1}
    path = write_llama(tmp_path / "evil.gguf", **TINY, extra=extra)
    text = succeed("inspect", f"--model={path}").stdout
    assert "\x1b" not in text
    assert r"a\x1b[31m\nbxxx" in text
    assert "(508 characters)" in text
    report = json.loads(succeed("inspect", f"--model={path}", "--json").stdout, parse_constant=pytest.fail)
    assert report["metadata"]["general.name"] == extra["general.name"]


def test_importing_packlight_imports_no_jax(no_jax):
    code = "import packlight; packlight.load, packlight.Tokenizer.from_gguf, packlight.CompileConfig()"
    environment = {"PYTHONPATH": f"{no_jax['PYTHONPATH']}:{COMMAND[1].removesuffix('run.py')}"}
    subprocess.run([COMMAND[0], "-c", code], env=environment, check=True)


def test_a_table_is_as_wide_as_it_must_be():
    rows = [("a", "1", "x"), ("bbb", "1,000", "y")]
    assert tables.table(("name", ">n", "c"), rows) == "name      n  c\na         1  x\nbbb   1,000  y\n"
    assert tables.table(("name", ">n"), []) == "name  n\n"


@pytest.mark.parametrize("platforms", ["cuda", "tpu", "nonsense"])
def test_a_platform_that_jax_cannot_find_is_one_line(tmp_path, platforms):
    """R26: JAX_PLATFORMS asks for a device that is not there."""
    model = write_llama(tmp_path / "model.gguf", **TINY)
    done = packlight(f"--model={model}", "--prompt=x", JAX_PLATFORMS=platforms)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"JAX_PLATFORMS is '{platforms}'" in line
    assert "Traceback" not in done.stderr
