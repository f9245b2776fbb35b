"""Hostile GGUF files, made byte by byte: a case for every kind of badgguf's list, and random damage to a sound file."""

import random
import struct

MAX = (1 << 64) - 1
HUGE = [MAX, 1 << 63, 1 << 40, 1 << 31]
U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
NUMBERS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", U64: "Q", I64: "q", F64: "d"}


def u32(n):
    return struct.pack("<I", n & 0xFFFFFFFF)


def u64(n):
    return struct.pack("<Q", n & MAX)


def text(raw):
    raw = raw.encode() if isinstance(raw, str) else raw
    return u64(len(raw)) + raw


def pair(key, kind, payload):
    return text(key) + u32(kind) + payload


def array(kind, count, payload=b""):
    return u32(kind) + u64(count) + payload


def info(name, dims, type_id, offset, n_dims=None):
    dims_bytes = b"".join(map(u64, dims))
    return text(name) + u32(len(dims) if n_dims is None else n_dims) + dims_bytes + u32(type_id) + u64(offset)


def gguf(pairs=(), infos=(), data=b"", version=3, n_kv=None, n_tensors=None, align=32):
    head = b"GGUF" + u32(version)
    head += u64(len(infos) if n_tensors is None else n_tensors) + u64(len(pairs) if n_kv is None else n_kv)
    head += b"".join(pairs) + b"".join(infos)
    return head + (bytes(-len(head) % align) + data if infos else b"")


def aligned(n):
    return pair("general.alignment", U32, u32(n))


NAMED = pair("general.name", STR, text("x"))
ONE = info("a", [8], 0, 0)
TWO = [info("a", [8, 2], 0, 0), info("b", [32, 3], 8, 64)]  # F32 64 bytes, Q8_0 102 bytes
TWO_DATA = bytes(64 + 102)
BAD_UTF8 = [b"\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"abc\xc3"]


def header_cases():
    good = gguf([NAMED], TWO, TWO_DATA)
    yield "header_bad_magic", [m + good[4:] for m in (b"FUGG", b"GGML", b"ggjt", b"gguf", bytes(4))], "not a GGUF file"
    yield "header_bad_version", [gguf(version=v) for v in (0, 1, 4, 2**31 - 1, 2**32 - 1)], "GGUF version"
    yield "header_version_2", [gguf([NAMED], TWO, TWO_DATA, version=2)], None
    yield "header_big_endian", [b"GGUF" + struct.pack(">IQQ", v, 1, 1) + good[24:] for v in (2, 3)], "big-endian"
    yield "header_bad_n_tensors", [gguf([NAMED], [ONE], bytes(32), n_tensors=n) for n in HUGE], "tensor count"
    yield "header_bad_n_tensors", [gguf(TWO[:0], [ONE], bytes(8), n_tensors=2)], "past the end|tensor count|empty"
    yield "header_bad_n_kv", [gguf([NAMED], n_kv=n) for n in HUGE], "metadata count"
    yield "header_bad_n_kv", [gguf([NAMED], n_kv=2)], "past the end|metadata count"
    yield "header_truncated", [good[:n] for n in range(1, 24)], "past the end|not a GGUF"
    yield "header_truncated", [b""], "empty"
    yield "header_empty", [gguf()], None
    noise = random.Random(0).randbytes(4096)
    others = [b"hello\n" * 99, b"PK\3\4" + noise, b"\x7fELF" + noise, b"\x1f\x8b" + noise, b'{"a": 1}', noise]
    yield "not_gguf", [*others, u64(20) + b'{"__metadata__":{}}', bytes(4096)], "not a GGUF"


def pair_cases():
    def ones(kind, payload):
        return gguf([pair("k", kind, payload)])

    sizes = [*HUGE, 6]
    yield "kv_bad_key_size", [gguf([u64(n) + b"k" + u32(U8) + b"\0"]) for n in [*HUGE, 7]], "name of key 0 runs past"
    yield "kv_empty_key", [gguf([pair("", U32, u32(0))])], "name of key 0 is empty"
    yield "kv_bad_type", [ones(t, bytes(16)) for t in (13, 255, 1 << 31, -1)], "key 'k' has the unknown value type"
    yield "kv_array_bad_type", [ones(ARR, array(t, 1, bytes(16))) for t in (13, 255, -1)], "'k' is an array of the unk"
    twice = [[(U32, u32(1)), (U32, u32(1))], [(U32, u32(1)), (STR, text("v"))]]
    yield "kv_duplicate_key", [gguf([pair("k", *p) for p in ps]) for ps in twice], "key 'k' appears twice"
    arch = pair("general.architecture", STR, text("llama"))
    yield "kv_duplicate_key", [gguf([arch, arch])], "key 'general.architecture' appears twice"
    yield "kv_bad_align", [gguf([aligned(n)], [ONE], bytes(32)) for n in (0, 3, 13, 33, 2**32 - 1)], "general.alignment"
    wrong = [(I32, u32(32)), (U64, u64(32)), (STR, text("32")), (ARR, array(U32, 1, u32(32))), (BOOL, b"\1")]
    wrong += [(F32, struct.pack("<f", 32))]
    yield "kv_wrong_type_align", [gguf([pair("general.alignment", *w)]) for w in wrong], "general.alignment.* not u32"
    yield "kv_odd_align", [gguf([aligned(n)], [ONE], bytes(32)) for n in (1, 2, 4)], "general.alignment"
    yield "kv_odd_align", [gguf([aligned(1 << 31)], [ONE], bytes(32))], "tensor 'a'.* past the end"
    yield "kv_bad_string_size", [ones(STR, u64(n) + b"value") for n in sizes], "key 'k' runs past the end"
    wraps = [1 << 40, 500_000_000, 1 << 63, MAX, 1 << 62, (1 << 61) + 1]
    kinds = [*NUMBERS, BOOL, STR]
    yield "kv_array_len_huge", [ones(ARR, array(t, n, bytes(8))) for n in wraps for t in kinds], "key 'k'.* elements"
    beyond = [ones(ARR, array(t, 3, bytes(2 * struct.calcsize(c)))) for t, c in NUMBERS.items()]
    beyond += [ones(ARR, array(BOOL, 3, bytes(2))), ones(ARR, array(STR, 3, text("aaaaaaaa") * 2))]
    yield "kv_array_len_beyond_file", beyond, "key 'k'"
    bad = [ones(ARR, array(STR, 3, text("a") + u64(n) + b"value" + bytes(8))) for n in [*HUGE, 14]]
    yield "kv_array_string_bad_size", bad, "string 1 of key 'k' runs past"
    nested = [ones(ARR, array(ARR, 1) * n + array(U8, 1, b"\0")) for n in (1, 2, 3, 5000, 100_000)]
    yield "kv_nested_array", nested, "key 'k' is an array of arrays"
    bools = [ones(BOOL, bytes([n])) for n in (2, 255)] + [ones(ARR, array(BOOL, 2, b"\1\2"))]
    yield "kv_bool_not_0_1", bools, "key 'k' is a bool of value"
    yield "kv_string_not_utf8", [ones(STR, text(b)) for b in BAD_UTF8], None
    yield "kv_string_not_utf8", [ones(ARR, array(STR, 2, text("a") + text(b))) for b in BAD_UTF8], None
    yield "kv_string_not_utf8", [ones(STR, text("a\0b"))], None
    keys = [*BAD_UTF8, b"a\0b"]
    yield "kv_key_not_utf8", [gguf([pair(k, U8, b"\0")]) for k in keys], "name of key 0 '.*' (is not UTF-8|holds a NUL)"
    yield "kv_key_not_utf8", [gguf([pair("k" * 65536, U8, b"\0")])], "name of key 0 has 65536 bytes"
    odd = ["a\nb", "\x1b[31m", "../../etc/passwd", "k" * 65535]
    yield "kv_key_not_utf8", [gguf([pair(k, U8, b"\0")]) for k in odd], None
    yield "kv_key_not_utf8", [gguf([pair(k, 13, b"\0")]) for k in odd], r"key '(a\\nb|\\x1b\[31m|\.\./|kkk)"
    values = {t: struct.pack("<" + c, 1) for t, c in NUMBERS.items()} | {STR: text("abc"), ARR: array(U8, 1, b"\0")}
    cut = [ones(t, v[:n]) for t, v in values.items() for n in range(len(v))]
    yield "kv_truncated_value", cut, "past the end|metadata count|elements"
    small = [pair(f"k{i}", U8, b"\1") for i in range(40_000)]
    yield "kv_many_empty_strings", [ones(ARR, array(STR, 200_000, bytes(1_600_000))), gguf(small)], None
    noise = random.Random(1)
    raws = [noise.randbytes(noise.randrange(40)) for _ in range(50)]
    yield "kv_random_bytes_strings", [gguf([pair(f"k{i}", STR, text(r)) for i, r in enumerate(raws)])], None


def tensor_cases():
    def one(*args, data=bytes(64), **more):
        return gguf([NAMED], [info(*args, **more)], data)

    yield "tensors_bad_name_size", [one("n" * n, [8], 0, 0) for n in (64, 65, 1000)], "name of tensor 0 has"
    bad_names = [gguf([NAMED], [u64(n) + ONE[8:]], bytes(64)) for n in (MAX, 1 << 40, 1 << 20)]
    yield "tensors_bad_name_size", bad_names, "name of tensor 0 runs past"
    yield "tensors_bad_name_size", [one("n" * 63, [8], 0, 0)], None
    yield "tensors_empty_name", [one(n, [8], 0, 0) for n in ("", b"\xff", "a\0")], "name of tensor 0"
    dims = [one("a", [1] * min(n, 9), 0, 0, n_dims=n) for n in (5, 1000, 1 << 31, 2**32 - 1)]
    yield "tensors_bad_n_dims", dims, "tensor 'a' has .* dimensions, not 1 to 4"
    yield "tensors_zero_n_dims", [one("a", [], 0, 0), one("abcdefgh", [], 0, 0)], "has 0 dimensions"
    shapes = [[-1], [1 << 63], [8, -1], [8, 1 << 63, 1, 1]]
    yield "tensors_bad_shape", [one("a", s, 0, 0) for s in shapes], "tensor 'a' has the impossible dimensions"
    yield "tensors_zero_dim", [one("a", s, 0, 0) for s in ([0], [8, 0], [0, 8, 1, 1])], "impossible dimensions"
    many = [[1 << 32, 1 << 31], [1 << 62, 2], [1 << 21] * 3, [1 << 16] * 4]
    yield "tensors_ne_too_big", [one("a", s, 0, 0) for s in many], "impossible dimensions"
    yield "tensors_nbytes_too_big", [one("a", [1 << 62], 0, 0), one("a", [1 << 31, 1 << 31], 0, 0)], "past the end"
    yield "tensors_nbytes_pad_wrap", [one("a", [(1 << 62) - 4], 0, 0)], "tensor 'a'.* past the end"
    wraps = [[1 << 32, 1 << 32], [1 << 63, 2], [32, (1 << 59) + 1], [1 << 16] * 4]
    yield "tensors_product_wraps", [one("a", s, 0, 0) for s in wraps], "impossible dimensions"
    rows = [([33], 8), ([16, 2], 2), ([255, 256], 12), ([32, 8], 14), ([64], 41)]
    yield "tensors_row_not_block", [one("a", s, t, 0) for s, t in rows], "tensor 'a': rows of .* not a multiple of"
    removed = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4"}
    for type_id, name in removed.items():
        yield "tensors_bad_type", [one("a", [256], type_id, 0)], rf"tensor 'a' is of type {name} \({type_id}\), which"
    yield "tensors_bad_type", [one("a", [256], t, 0) for t in (37, 38)], "tensor 'a' is of type IQ4_NL"
    unknown = [one("a", [256], t, 0) for t in (43, 255, 1 << 31, -1)]
    yield "tensors_bad_type", unknown, "tensor 'a' is of the unknown type"
    offsets = [-1, 1 << 63, 96, 8, 33, -32, MAX - 63]
    yield "tensors_bad_offset", [one("a", [8], 0, o) for o in offsets], "tensor 'a'.*(past the end|not a multiple)"
    overlap = [[info("a", [64], 0, 0), info("b", [64], 0, o)] for o in (0, 32, 224)]
    overlap += [[info("b", [8], 0, 32), info("a", [64], 0, 0)]]
    yield "tensors_overlap", [gguf((), o, bytes(512)) for o in overlap], "tensor 'b' overlaps tensor 'a'|'a' overlaps"
    gaps = [[info("a", [8], 0, 0), info("b", [8], 0, 96)], [info("a", [8], 0, 64), info("b", [8], 0, 0)]]
    yield "tensors_gap_or_order", [gguf((), g, bytes(128)) for g in gaps], None
    yield "tensors_duplicate_name", [gguf((), [ONE, info("a", [8], 0, 32)], bytes(64))], "tensor 'a' appears twice"
    yield "tensors_bad_align", [gguf([aligned(13)], [ONE, info("b", [8], 0, 39)], bytes(80), align=13)], "alignment'"
    packed = [info("a", [9], 0, 0), info("b", [8], 0, 36)]
    yield (
        "tensors_inconsistent_align",
        [gguf((), packed, bytes(68)), gguf([aligned(32)], packed, bytes(68))],
        "tensor 'b'",
    )
    head = gguf([NAMED], TWO, b"")
    yield "tensors_no_data", [head, head.rstrip(b"\0") + b"\0" * 8], "tensor '.' ?.*past the end"
    yield "tensors_size_beyond_file", [one("a", [4096, 4096], 0, 0)], "tensor 'a': 67108864 bytes at .* past the end"
    start = len(gguf([NAMED])) + 8
    infos = [gguf([NAMED], [ONE])[:n] for n in range(start, start + len(ONE) - 8)]
    yield "tensors_truncated_info", infos, "past the end|tensor count"


def data_cases():
    good = gguf([NAMED], TWO, TWO_DATA)
    yield "data_not_enough", [good[:-1], good[:-102], good[:-103]], "tensor '[ab]'.* past the end"
    yield "data_bad_align", [gguf([aligned(13)], [ONE], bytes(39), align=13)], "general.alignment"
    yield "data_inconsistent_align", [gguf((), [info("a", [1], 0, 0), info("b", [1], 0, 4)], bytes(8))], "tensor 'b'"
    half = (1 << 61) - 16
    two = [info("a", [half], 0, 0), info("b", [half], 0, (1 << 63) - 64)]
    yield "data_mem_size_overflow", [gguf((), two, bytes(32))], "tensor 'a'.* past the end"
    yield "data_good", [good], None
    for align in (8, 16, 64, 4096):
        spread = [info("a", [8, 2], 0, 0), info("b", [32, 3], 8, max(64, align))]
        data = bytes(max(64, align) + 102)
        yield "data_custom_align", [gguf([aligned(align)], spread, data, align=align)], None
    for type_id in (9, 15, 24, 25, 26, 27, 28):
        yield "data_good_any_type", [gguf((), [info("a", [256], type_id, 0)], bytes(4096))], "tensor 'a' is of type"
    for type_id in (0, 1, 2, 8, 12, 14, 30, 39, 40, 41, 42):
        yield "data_good_any_type", [gguf((), [info("a", [256], type_id, 0)], bytes(1024))], None
    yield "data_trailing_bytes", [good + bytes(99), good + b"more"], None


CASES = [*header_cases(), *pair_cases(), *tensor_cases(), *data_cases()]


# Damage of any kind


def sound_model():
    """A file with every value type, 4 tensors and no byte after the last one."""
    pairs = [
        aligned(32),
        NAMED,
        pair("b", BOOL, b"\1"),
        pair("s", ARR, array(STR, 3, text("ab") + text("") + text("é"))),
    ]
    pairs += [pair(f"n{t}", t, struct.pack("<" + c, 3)) for t, c in NUMBERS.items()]
    pairs += [pair(f"a{t}", ARR, array(t, 2, struct.pack("<2" + c, 3, 4))) for t, c in NUMBERS.items()]
    infos = [*TWO, info("blk.0.q", [256, 2], 12, 192), info("v", [32, 2, 2], 2, 480)]
    return gguf(pairs, infos, random.Random(0).randbytes(480 + 72))


NASTY = [0, 1, 7, 64, 255, 1 << 16, 1 << 31, 2**32 - 1, 1 << 32, 1 << 40, 1 << 62, 1 << 63, MAX, MAX - 31]


def mutated(raw, rng):
    """`raw` with one to three kinds of damage, mostly in the header."""
    out = bytearray(raw)
    for _ in range(rng.randint(1, 3)):
        if not out:
            break
        at = rng.randrange(len(out)) if rng.random() < 0.1 else rng.randrange(min(len(out), 1500))
        size = rng.randint(1, 16)
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at : at + 8] = u64(rng.choice(NASTY))
            case 2:
                out[at : at + 4] = u32(rng.choice(NASTY))
            case 3:
                del out[at : at + size]
            case 4:
                out[at:at] = rng.randbytes(size)
            case 5:
                out[at:at] = out[at : at + size]
            case 6:
                out[at : at + size] = bytes(size)
            case 7:
                other = rng.randrange(len(out))
                out[at : at + 8], out[other : other + 8] = out[other : other + 8], out[at : at + 8]
    return bytes(out)
