"""The GGUF reader on sound files: the right bytes (against gguf-py), metadata, split files; and on what is no file."""

import dataclasses
import hashlib
import os
import pathlib
import random
import subprocess
import sys
import time

import gguf
import numpy as np
import pytest
import vocabularies
from conftest import shared_path
from ggufs import write_llama
from golden_models import shared

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.model.gguf import reader
from packlight.model.gguf.reader import open_gguf, read_into, read_tensor
from packlight.quant.formats.table import BY_TYPE_ID, FORMATS

ROOT = pathlib.Path(__file__).resolve().parents[3]
MIXED = {"default": "Q4_K", "attn_v": "Q6_K", "ffn_down": "Q5_K", "attn_k": "F16", "ffn_up": "Q2_K", "output": "Q8_0"}


@pytest.fixture(scope="module", params=[(None, 320), (32, 320), (64, 320), (4096, 320), (64, 6000)], ids=str)
def mixed_file(request, tmp_path_factory):
    """Several formats under several alignments; 6,000 tokens make a header of more than 64 KB."""
    alignment, vocab = request.param
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_llama(path, embed=256, vocab=vocab, formats=MIXED, biases=True, alignment=alignment)


def sha256(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def wrong_tensors(path, seed=0):
    """Names of the tensors whose bytes are not gguf-py's, read in random order."""
    expected = {t.name: sha256(t.data) for t in gguf.GGUFReader(path).tensors}
    infos = list(open_gguf(path).tensors.values())
    random.Random(seed).shuffle(infos)
    assert {i.name for i in infos} == set(expected)
    return [i.name for i in infos if sha256(read_tensor(i)) != expected[i.name]]


def test_bytes_are_gguf_pys_in_any_order(mixed_file):
    for seed in range(3):
        assert wrong_tensors(mixed_file, seed) == []


def test_large_header_is_large(mixed_file):
    first = min(t.offset for t in open_gguf(mixed_file).tensors.values())
    assert (first > 65536) == (len(open_gguf(mixed_file).metadata["tokenizer.ggml.tokens"]) == 6000)


@pytest.mark.parametrize("wrong", [lambda end, alignment: 0, lambda end, alignment: end], ids=["absolute", "unrounded"])
def test_mutation_of_the_data_start_is_noticed(mixed_file, monkeypatch, wrong):
    monkeypatch.setattr(reader, "_data_start", wrong)
    assert len(wrong_tensors(mixed_file)) > 10


def test_mutation_of_a_block_size_is_noticed(mixed_file, monkeypatch):
    """Q5_K of 178 bytes: what the table must not say (the struct has 176)."""
    q5_k = FORMATS["Q5_K"]
    monkeypatch.setitem(BY_TYPE_ID, q5_k.type_id, dataclasses.replace(q5_k, bytes=178))
    with pytest.raises(GGUFError, match="overlaps tensor 'blk.0.ffn_down.weight'"):
        open_gguf(mixed_file)


def test_infos(mixed_file):
    file = open_gguf(mixed_file)
    reader = gguf.GGUFReader(mixed_file)
    assert list(file.tensors) == [t.name for t in reader.tensors]
    for theirs in reader.tensors:
        ours = file.tensors[theirs.name]
        assert ours.shape == tuple(int(d) for d in reversed(theirs.shape))
        assert (ours.format.type_id, ours.nbytes, ours.offset) == (
            theirs.tensor_type,
            theirs.n_bytes,
            theirs.data_offset,
        )
    down = file.tensors["blk.1.ffn_down.weight"]
    assert down.shape == (256, 768)
    assert read_tensor(down).shape == down.blocks_shape == (256, 3, 176)
    assert file.parts == (str(mixed_file),)
    assert file.file_bytes == os.path.getsize(mixed_file)
    assert (file.version, file.alignment) == (3, reader.alignment)


def test_metadata_is_gguf_pys(mixed_file):
    file = open_gguf(mixed_file)
    fields = {k: f.contents() for k, f in gguf.GGUFReader(mixed_file).fields.items() if not k.startswith("GGUF.")}
    assert list(file.metadata) == list(fields)
    for key, theirs in fields.items():
        ours = file.metadata[key]
        if isinstance(ours, np.ndarray):
            assert ours.tolist() == theirs, key
        else:
            assert ours == theirs, key
    assert type(file.metadata["tokenizer.ggml.add_bos_token"]) is bool
    assert file.metadata["tokenizer.ggml.scores"].dtype == np.float32
    assert file.metadata["tokenizer.ggml.token_type"].dtype == np.int32


@pytest.mark.shared
@pytest.mark.parametrize("name", ["models/stories260K-k256-Q4_K_M.gguf", "arch/gpt-oss.gguf", "arch/llama-lowbit.gguf"])
def test_real_files_match_gguf_py(name):
    assert wrong_tensors(shared_path(name)) == []


@pytest.mark.parametrize("name", ["own", *shared(["vocabs/ggml-vocab-llama-bpe.gguf"])])
def test_large_vocabulary_opens_fast(name, tmp_path):
    path = (
        vocabularies.write_vocabulary(tmp_path / "v.gguf", vocabularies.large()) if name == "own" else shared_path(name)
    )
    seconds = []
    for _ in range(3):
        began = time.process_time()  # of this process: the machine may be busy
        file = open_gguf(path)
        seconds.append(time.process_time() - began)
    assert len(file.metadata["tokenizer.ggml.tokens"]) == vocabularies.TOKENS
    assert len(file.metadata["tokenizer.ggml.merges"]) == vocabularies.MERGES
    assert min(seconds) < 0.4  # measured 0.17 on a Zen 3 core


def test_imports_neither_jax_nor_gguf():
    code = "import sys, packlight.model.gguf.reader; print(sorted({'jax', 'gguf', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "['numpy']\n"


def test_read_into(mixed_file):
    info = open_gguf(mixed_file).tensors["blk.0.attn_v.weight"]
    out = np.empty(info.nbytes, np.uint8)
    read_into(info, out)
    assert (out.reshape(info.blocks_shape) == read_tensor(info)).all()
    frozen = out.copy()
    frozen.setflags(write=False)
    for bad in (out[:-1], out.view(np.int8), np.empty(2 * info.nbytes, np.uint8)[::2], frozen):
        with pytest.raises(ValueError, match=r"blk\.0\.attn_v"):
            read_into(info, bad)


def test_short_reads_are_continued(mixed_file, monkeypatch):
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:1000]], offset))
    assert wrong_tensors(mixed_file) == []


def test_file_cut_after_open(tmp_path):
    path = write_llama(tmp_path / "m.gguf")
    info = list(open_gguf(path).tensors.values())[-1]
    os.truncate(path, info.offset + 5)
    with pytest.raises(GGUFError, match=r"m\.gguf: tensor 'output\.weight': the file was cut short"):
        read_tensor(info)
    path.unlink()
    with pytest.raises(GGUFError, match="cannot open: No such file"):
        read_tensor(info)


def special_files(folder):
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    return [
        (folder / "absent.gguf", r"absent\.gguf: cannot open: No such file"),
        (folder, "a directory, not a regular file"),
        (folder / "pipe", "a pipe, socket or device"),
        ("/dev/zero", "a pipe, socket or device"),
        (folder / "loop", "cannot open"),
        (folder / "x" / ("n" * 300), "cannot open"),
        ("a\0b", r"a\\x00b: not a possible file name"),
        ("\ud800", "not a possible file name"),
        (folder / "new\nline\x1b[31m", r"new\\nline\\x1b\[31m: cannot open"),
    ]


def test_no_regular_file(tmp_path):
    for path, words in special_files(tmp_path):
        with pytest.raises(GGUFError, match=words) as e:
            open_gguf(path)
        assert str(e.value).isprintable()


def test_unreadable_file(monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # chmod would not do: root reads every file
    with pytest.raises(GGUFError, match=r"m\.gguf: cannot open: Permission denied"):
        open_gguf("m.gguf")


def test_disk_error_while_reading(mixed_file, monkeypatch):
    def fail(*args):
        raise OSError(5, "Input/output error")

    info = open_gguf(mixed_file).tensors["output.weight"]
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(GGUFError, match=r"tensor 'output\.weight': cannot read: Input/output error"):
        read_tensor(info)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(GGUFError, match=r"m\.gguf: cannot read: Input/output error"):
        open_gguf(mixed_file)


# Split files


def write_split(folder, tensors=5, per_part=2, name="m"):
    """Writes m-0000i-of-0000N.gguf with gguf-py; returns the paths of the parts and the arrays."""
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", "llama", split_max_tensors=per_part)
    writer.add_uint32("x.count", 7)
    arrays = {f"t{i}": np.random.default_rng(i).standard_normal((3 + i, 8)).astype(np.float32) for i in range(tensors)}
    for key, array in arrays.items():
        writer.add_tensor(key, array)
    writer.open_output_file()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{name}-*.gguf")), arrays


def test_split_file_is_joined(tmp_path):
    paths, arrays = write_split(tmp_path)
    assert len(paths) == 3
    file = open_gguf(paths[0])
    assert file.parts == tuple(map(str, paths))
    assert file.file_bytes == sum(p.stat().st_size for p in paths)
    assert list(file.tensors) == list(arrays)
    assert file.metadata["x.count"] == 7
    for name, array in arrays.items():
        assert (read_tensor(file.tensors[name]).reshape(-1).view(np.float32) == array.reshape(-1)).all()
    assert file.tensors["t4"].path == str(paths[2])


def test_other_part_names_the_first(tmp_path):
    paths, _ = write_split(tmp_path)
    with pytest.raises(GGUFError, match=r"00002-of-00003\.gguf: part 2 of 3 .* open .*m-00001-of-00003\.gguf"):
        open_gguf(paths[1])
    assert list(open_gguf(paths[1], join=False).tensors) == ["t2", "t3"]


def test_missing_part_is_named(tmp_path):
    paths, _ = write_split(tmp_path)
    paths[2].unlink()
    with pytest.raises(GGUFError, match=r"m-00003-of-00003\.gguf: part 3 of 3 of m-00001-of-00003\.gguf: cannot open"):
        open_gguf(paths[0])
    assert len(open_gguf(paths[0], join=False).tensors) == 2


def test_renamed_first_part(tmp_path):
    paths, _ = write_split(tmp_path)
    paths[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GGUFError, match=r"must be named NAME-00001-of-00003\.gguf"):
        open_gguf(tmp_path / "model.gguf")


def test_parts_of_different_models(tmp_path):
    paths, _ = write_split(tmp_path)
    others, _ = write_split(tmp_path, tensors=6, name="other")
    os.replace(paths[2], tmp_path / "keep")
    os.replace(others[2], paths[2])
    with pytest.raises(GGUFError, match=r"'split\.tensors\.count' says 5; the parts hold 6"):
        open_gguf(paths[0])
    os.replace(others[0], paths[2])
    with pytest.raises(GGUFError, match="do not say part 3 of 3"):
        open_gguf(paths[0])


def test_tensor_in_two_parts(tmp_path):
    paths, _ = write_split(tmp_path, tensors=4)
    raw = paths[1].read_bytes()
    assert raw.count(b"t2") == 1
    paths[1].write_bytes(raw.replace(b"t2", b"t1"))
    with pytest.raises(GGUFError, match="tensor 't1' is in an earlier part too"):
        open_gguf(paths[0])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"split.count": ("u16", 65535)}, "must be named NAME-00001-of-65535"),
        ({"split.count": ("u16", 2), "split.no": ("u16", 5)}, "part 6 of 2"),
        ({"split.no": ("u16", 1)}, "part 2 of 1"),
        ({"split.count": "two"}, r"key 'split\.count' is not a count"),
        ({"split.count": ("i32", -1)}, r"key 'split\.count' is not a count"),
        ({"split.no": ("f32", 0.0)}, r"key 'split\.no' is not a count"),
    ],
)
def test_split_keys(keys, words, tmp_path):
    path = write_llama(tmp_path / "m.gguf", extra=keys)
    with pytest.raises(GGUFError, match=words):
        open_gguf(path)


def test_one_part_is_whole(tmp_path):
    extra = {"split.count": ("u16", 1), "split.no": ("u16", 0), "split.tensors.count": ("i32", 99)}
    assert open_gguf(write_llama(tmp_path / "m.gguf", extra=extra)).parts == (str(tmp_path / "m.gguf"),)


def test_unsupported_type_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("ids", np.zeros((2, 4), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"m\.gguf: tensor 'ids' is of type I32 \(26\).*supported: F32, F16"):
        open_gguf(tmp_path / "m.gguf")
