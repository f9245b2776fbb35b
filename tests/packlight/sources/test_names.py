"""Which file of a repository a name means: llama.cpp's choice where there is one, and the nearest names where not."""

import pytest

from packlight.common.errors import ConfigError, MissingFileError
from packlight.sources.names import HubName, choose, is_model, parts_of, quantization

SHARDS = [f"Q8_0/Big-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
MANY = [
    ".gitattributes",
    "README.md",
    "Tiny-1B-BF16.gguf",
    "Tiny-1B-IQ4_XS.gguf",
    "Tiny-1B-Q4_K_M.gguf",
    "Tiny-1B-Q4_K_S.gguf",
    "Tiny-1B-Q8_0.gguf",
    "Tiny-1B-UD-Q4_K_XL.gguf",
    "imatrix_unsloth.gguf",
    "mmproj-F16.gguf",
]


def chosen(text: str, files: list[str]) -> tuple[str, str]:
    choice = choose(HubName.parse(text), files)
    return choice.files[0], choice.note


@pytest.mark.parametrize(
    ("text", "repo", "revision", "wanted"),
    [
        ("hf:o/r", "o/r", "main", None),
        ("hf://o/r", "o/r", "main", None),
        ("hf:O-1/r.2_x:q4_k_m", "O-1/r.2_x", "main", "q4_k_m"),
        ("hf:o/r@v1.0", "o/r", "v1.0", None),
        ("hf:o/r@refs/pr/3:sub/F.gguf", "o/r", "refs/pr/3", "sub/F.gguf"),
    ],
)
def test_what_a_name_says(text, repo, revision, wanted):
    name = HubName.parse(text)
    assert (name.repo, name.revision, name.wanted) == (repo, revision, wanted)


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:r",
        "hf:o/r/x",
        "hf:o/r:",
        "hf:o/r@",
        "hf:o/r@:Q8_0",
        "hf:/r",
        "hf:o o/r",
        "hf:o/r@../../../../victim",
        "hf:o/r@a//b",
        "hf:o/r@./a",
        "hf:o/r@a/..",
    ],
)
def test_what_is_no_name(text):
    with pytest.raises(ConfigError, match=r"named hf:OWNER/REPO, hf:OWNER/REPO:Q4_K_M"):
        HubName.parse(text)


@pytest.mark.parametrize(
    ("wanted", "file"),
    [
        ("", "Tiny-1B-Q4_K_M.gguf"),
        (":Q8_0", "Tiny-1B-Q8_0.gguf"),
        (":q8_0", "Tiny-1B-Q8_0.gguf"),
        (":Q4_K_XL", "Tiny-1B-UD-Q4_K_XL.gguf"),
        (":ud-q4_k_xl", "Tiny-1B-UD-Q4_K_XL.gguf"),
        (":iq4_xs", "Tiny-1B-IQ4_XS.gguf"),
        (":bf16", "Tiny-1B-BF16.gguf"),
        (":Tiny-1B-Q4_K_S.gguf", "Tiny-1B-Q4_K_S.gguf"),
        (":tiny-1b-q4_k_s.GGUF", "Tiny-1B-Q4_K_S.gguf"),
    ],
)
def test_the_file_that_is_meant(wanted, file):
    assert chosen(f"hf:o/r{wanted}", MANY) == (file, "")


@pytest.mark.parametrize(
    ("files", "file", "note"),
    [
        (["a-Q8_0.gguf", "a-Q2_K.gguf"], "a-Q8_0.gguf", "as there is no Q4_K_M"),
        (["b-Q5_K_M.gguf", "a-Q2_K.gguf"], "a-Q2_K.gguf", "the first of 2 models, as there is no Q4_K_M or Q8_0"),
        (["only.gguf", "mmproj-Q8_0.gguf"], "only.gguf", "the only model, as there is no Q4_K_M or Q8_0"),
        (["x-Q4_K_M.gguf", "x-mmproj-Q4_K_M.gguf"], "x-Q4_K_M.gguf", ""),
    ],
)
def test_without_a_quantization_it_says_what_it_took(files, file, note):
    assert chosen("hf:o/r", files) == (file, note)


def test_of_several_in_one_quantization_it_is_the_first_and_it_is_said():
    files = ["b-Q8_0.gguf", "a-Q8_0.gguf"]
    assert chosen("hf:o/r:q8_0", files) == ("a-Q8_0.gguf", "the first of 2 in Q8_0; :FILE.gguf names another")


def test_all_parts_of_a_split_file():
    for text in (
        "hf:o/r",
        "hf:o/r:Q8_0",
        f"hf:o/r:{SHARDS[0]}",
        f"hf:o/r:{SHARDS[1]}",
        "hf:o/r:big-q8_0-00003-of-00003.gguf",
    ):
        assert choose(HubName.parse(text), [*MANY[:2], *SHARDS]).files == tuple(SHARDS)
    with pytest.raises(MissingFileError, match=r"not all parts of .*: Q8_0/Big-Q8_0-00002-of-00003\.gguf missing"):
        choose(HubName.parse("hf:o/r"), [SHARDS[0], SHARDS[2]])


@pytest.mark.parametrize(
    ("text", "files", "said"),
    [
        ("hf:o/r:Q4_0", MANY, "has no Q4_0; it has: Q4_K_M, Q4_K_S, IQ4_XS, UD-Q4_K_XL, Q8_0, BF16$"),
        ("hf:o/r:Q4_K", MANY, "has no Q4_K; it has: Q4_K_M, Q4_K_S"),
        ("hf:o/r:Q9_9", ["plain.gguf"], "has no Q9_9; it has: plain.gguf"),
        ("hf:o/r:Tiny-1B-Q4_K_L.gguf", MANY, "no such file; did you mean 'Tiny-1B-Q4_K_[MS].gguf'"),
        ("hf:o/r:zzz.gguf", MANY, "no such file; it has: Tiny-1B-BF16.gguf, Tiny-1B-IQ4_XS.gguf"),
        ("hf:o/r:mmproj-F16.gguf", MANY, "mmproj-F16.gguf goes with a model and is none"),
        ("hf:o/r", ["README.md", "model.safetensors"], "has no GGUF model; what it has: README.md, model.safetensors"),
        ("hf:o/r", ["mmproj-F16.gguf"], "has no GGUF model; what it has: mmproj-F16.gguf"),
        ("hf:o/r", [], "has no GGUF model$"),
        ("hf:o/r", [f"{i:02d}.bin" for i in range(20)], "10.bin, 11.bin and 8 more"),
        ("hf:o/r:zzz.gguf", ["\x1b[31m.gguf"], r"it has: \\x1b\[31m"),
        ("hf:o/r:\x1b[31m", MANY, r"has no \\x1b"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(text, files, said):
    with pytest.raises(MissingFileError, match=said):
        choose(HubName.parse(text), files)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("Qwen3-0.6B-Q8_0.gguf", "Q8_0"),
        ("tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("m.i1-IQ3_XXS.gguf", "IQ3_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "FP16"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00004.gguf", "UD-IQ1_S"),
        ("BF16/Big-00001-of-00002.gguf", "BF16"),
        ("bitnet-TQ2_0.gguf", "TQ2_0"),
        ("stories15M.gguf", None),
        ("Qwen3-4B.gguf", None),
    ],
)
def test_the_quantization_in_a_files_name(file, kind):
    assert quantization(file) == kind


def test_endings_in_capitals():
    assert chosen("hf:o/r:a-q8_0.gguf", ["A-Q8_0.GGUF"]) == ("A-Q8_0.GGUF", "")
    assert chosen("hf:o/r:XL", ["A-XL.GGUF"]) == ("A-XL.GGUF", "")


def test_a_part_of_none_is_whole_alone():
    assert parts_of("x-00001-of-00000.gguf") == ("x-00001-of-00000.gguf",)


def test_what_goes_with_a_model_is_none():
    for file in (
        "mmproj-model.gguf",
        "x.mmproj-f16.gguf",
        "imatrix.gguf",
        "sub/mtp-Q8_0.gguf",
        "eagle3-x.gguf",
        "a.bin",
    ):
        assert not is_model(file)
    assert is_model("mmproj/model.gguf")
