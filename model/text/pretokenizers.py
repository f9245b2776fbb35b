"""How each pre-tokenizer cuts a text into the words that byte-pair merges stay inside: a table, and the cutter.

Knows the regular expressions and options behind llama.cpp's `tokenizer.ggml.pre` names, and Unicode's letters, numbers,
punctuation, marks and symbols. Knows no vocabulary, no merges and no GGUF file.

Python's `re` has no `\\p{L}`, and the engines that do follow whatever Unicode version they were built with: tokenizers
0.23 calls 4302 code points letters that llama.cpp, frozen at Unicode 15.1, does not. So the classes are stored here,
and a text is matched through its shadow: ASCII as it is, any other character replaced by a representative of its class.

llama.cpp knows no letter case beyond ASCII: where a pattern names `\\p{Lu}` or `\\p{Ll}` it reads `\\p{L}`.
"""

import bisect
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

# The class of every code point from U+0080 up (Unicode 15.1), as runs of a class letter and a length in hexadecimal:
# L letter, N number, P punctuation, M mark, S symbol, x anything else; what follows the last run is x too.
_RUNS = (
    "x21P1S5P1S2L1P1S1x1S4N2S1L1P2S1N1L1P1N3P1L17S1L1fS1L1caS4LcSeL5S7L1S1L1S11M70L5S1L2x2L4P1L1x4S2L1P1L3x1L1x1L14x1"
    "L53S1L8bS1M7La6x1L26x2L1P6L29P2x2S3x1M2dP1M1P1M2P1M2P1M1x8L1bx4L4P2x11S3P2S1P2S2MbP1x1P3L2bM15NaP4L2M1L63P1L1M7x"
    "1S1M6L2M2S1M4L2NaL3S2L1Pex2L1M1L1eM1bx2L59MbL1xeNaL21M9L2S1P3L1x2M1S2L16M4L1M9L1M3L1M5x2Pfx1L19M3x2P1x1Lbx5L18S1"
    "L6x9M8L2aM18x1M21L36M3L1M12L1M7LaM2P2NaP1L10M3x1L8x2L2x2L16x1L7x1L1x3L4x2M1L1M7x2M2x2M3L1x8M1x4L2x1L3M2x2NaL2S2N"
    "6S2L1P1M1x2M3x1L6x4L2x2L16x1L7x1L2x1L2x1L2x2M1x1M5x4M2x2M3x3M1x7L4x1L1x7NaM2L3M1P1xaM3x1L9x1L3x1L16x1L7x1L2x1L5x"
    "2M1L1M8x1M3x1M3x2L1xfL2M2x2NaP1S1x7L1M6x1M3x1L8x2L2x2L16x1L7x1L2x1L5x2M1L1M7x2M2x2M3x7M3x4L2x1L3M2x2NaS1L1N6xaM1"
    "L1x1L6x3L3x1L4x3L2x1L1x1L2x3L2x3L3x3Lcx4M5x3M3x1M4x2L1x6M1xeNdS8x5M5L8x1L3x1L17x1L10x2M1L1M7x1M3x1M4x7M2x1L3x2L1"
    "x2L2M2x2Nax7P1N7S1L1M3P1L8x1L3x1L17x1Lax1L5x2M1L1M7x1M3x1M4x7M2x6L2x1L2M2x2Nax1L2M1xcM4L9x1L3x1L29M2L1M7x1M3x1M4"
    "L1S1x4L3M1N7L3M2x2N13S1L6x1M3x1L12x3L18x1L9x1L1x2L7x3M1x4M6x1M1x1M8x6Nax2M2P1xcL30M1L2M7x4S1L7M8P1NaP2x25L2x1L1x"
    "1L5x1L18x1L1x1LaM1L2M9L1x2L5x1L1x1M7x1Nax2L4x20L1S3PfS1P1S3M2S6N14S1M1S1M1S1M1P4M2L8x1L24x4M14P1M2L5Mbx1M24x1S8M"
    "1S6x1S2P5S4P2x25L2bM14L1NaP6L6M4L4M3L1M3L2M7L3M4LdMcL1M1NaM4S2L26x1L1x5L1x2L2bP1L14dx1L4x2L7x1L1x1L4x2L29x1L4x2L"
    "21x1L4x2L7x1L1x1L4x2Lfx1L39x1L4x2L43x2M3P9N14x3L10Sax6L56x2L6x2P1L26cS1P1L11x1L1aP2x3L4bP3N3L8x7L12M4x9L13M3P2x9"
    "L12M2xcLdx1L3x1M2xcL34M20P3L1P3S1L1M1x2Nax6Nax6PbM3x1M1Nax6L59x7L5M2L22M1L1x5L46xaL1fx1Mcx4Mcx4S1x3P2NaL1ex2L5xb"
    "L2cx4L1ax6Nbx3S22L17M5x2P2L35Max1M1dx2M1Nax6Nax6P7L1P6x2M1fx31M5L2fM11L8x3NaP7SaM9S9P2x1M3L1eMdL2NaL2cMex8P4L24M"
    "14x3P5Nax3L3NaL24P2L9x7L2bx2L3P8x8M3P1M15L4M1L6M1L2M3L1x5Lc0M40L116x2L6x2L26x2L6x2L8x1L1x1L1x1L1x1L1fx2L35x1L7S1"
    "L1S3L3x1L7S3L4x2L6x1S3LdS3x2L3x1L7S2x11P18x8P14S1PdS1Pcx11N1L1x2N6S3P2L1NaS3P2x1Ldx3S21xfM21xfS2L1S4L1S2LaS1L1S3"
    "L5S6L1S1L1S1L1S1L4S1LbS2L4S5L5S4L1S1N33L2N5S2x4S178P4S1dP2Sfcx19Sbx15N3cS4eN16S268PeN1eS31P2S1fPaS193P16S3fP4S20"
    "P2S176x2S20x1S69Le5S6L4M3L2x5P4N1P2L26x1L1x5L1x2L38x7L1P1xeM1L17x9L7x1L7x1L7x1L7x1L7x1L7x1L7x1L7x1M20P2fL1P20S2P"
    "cx22S1ax1S59xcSd6x1aS10x1P3S1L2N1PaS2PcS1N9M6P1L5S2N3L2P1S2x1L56x2M2S2L3P1L5aP1L4x5L2bx1L5ex1S2N4SaL20S24xbS1L10"
    "S1fx1NaS1eN8S1NfS20NaS27NfS140L19c0S40L568dx3S37x9L2eP2L10dP3L10NaL2x14L2fM4P1MaP1L1fM2L46NaM2P6x8S17L9S2L67S2L4"
    "0x5L2x1L1x1L5x18L10M1L3M1L4M1L17M5S4M1x3N6S4x6L34P4x8M2L32M12x8P2Nax6M12L6P3L1P1L2M1NaL1cM8P2L17MdxbP1L1dx3M4L2f"
    "MePdx1L1Nax4P2L5M1LaNaL5x1L29Mex9L3M1L8M2x2Nax2P4L17S3L1M3L32M1L1M3L2M2L5M2L1M1L1x18L3P2LbM5P2L3M2xaL6x2L6x2L6x9"
    "L7x1L7x1L2bS1LeS2x4L73M8P1M2x2Nax6L2ba4xcL17x4L31x2104L16ex2L6ax26L7xcL5x5L1M1LaS1Ldx1L5x1L1x1L2x1L2x1L6cS11x10L"
    "16bP2S10L40x2L36x7S1x20LcS4M10Pax6M10P23x1PeS1P1S3x1P1S1P2x4L5x1L87x4P3S1P6S1P4NaP2S3P2L1aP3S1P1S1L1aP1S1P1S1P7L"
    "59x3L6x2L6x2L6x2L3x3S7x1S7xdS2x2Lcx1L1ax1L13x1L2x1Lfx2Lex22L7bx5P3x4N2dx3S9N39S11N2S3x1Sdx3S1x2fS2dM1x82L1dx3L31"
    "xfM1N1bx4L20N4x9L14N1L8N1x5L26M5x5L1ex1P1L24x4L8P1N5x2aL9ex2Nax6L24x4L24x4L28x8L34xbP1Lbx1Lfx1L7x1L2x1Lbx1Lfx1L7"
    "x1L2x43L137x9L16xaL8x18L6x1L2ax1L9x45L6x2L1x1L2cx1L2x3L1x2L17x1P1N8L17S2N7L1fx8N9x30L13x1L2x5N5L16N6x3P1L1ax5P1x"
    "40L38x4N2L2N10x2N2eL1M3x1M2x5M4L4x1L3x1L1dx2M3x4M1N9x7P9x7L1dN2P1L1dN3x20L8S1L1cM2x4N5P7x9L36x3P7L16x2N8L13x5N8L"
    "12x7P4xcN7x50L49x37L33xdL33x7N6L24M4x8Nax126N1fx1L2ax1M2P1x2L2x4bM3L1dNaL1x8L16MbN4P5x16L12M4P4x26L15N7x14L17x9M"
    "3L35MfP7x4N1eM1L2M2L1x9M4L2dMbP2x1P4M1xdL19x7Nax6M3L24Mex1NaP4L1M2L1x8L23M1P2L1x9M3L30MeL4P4M4P1M2NaL1P1L1P3x1N1"
    "4xbL12x1L19McP6M1L2M1x3eL7x1L1x1L4x1Lfx1LaP1x6L2fMcx5Nax6M4x1L8x2L2x2L16x1L7x1L2x1L5x1M2L1M7x2M2x2M3x2L1x6M1x5L5"
    "M2x2M7x3M5x8bL35M12L4P5NaP2x1P1M1L3x1eL30M14L2P1L1x8Naxa6L2fM7x2M9P17L4M2x22L30M11P3L1xbNax6Pdx13L2bMdL1P1x6Nax3"
    "6L1bx2Mfx4NcP3S1L7xb9L2cMfP1x64L40N13xcL8x2L1x2L8x1L2x1L18M6x1M2x2M4L1M1L1M2P3x9Nax46L8x2L27M7x2M7L1P1L1M1x1bL1M"
    "aL28M7L1M4P8M1x8L1MbL2eM10P3L1P5xdL49x7Paxf6L9x1L25M8x1M8L1P5xaN1dx3P2L1ex2M16x1Mex49L7x1L2x1L26M6x3M1x1M2x1M7L1"
    "M1x8Nax6L6x1L2x1L20M5x1M2x1M5L1x7Nax136L13M4P2x7M2L1M1Ldx1L22M7x3M5PdNax56L1xfN15S1dxdP1L39ax66N6fx1P5xbLc4xa4cL"
    "61P2xdL430x10M1L6MfxfaaL247x21b9L239x7L1fx1Nax4P2L4fx1Nax6L1ex2M5P1xaL30M7P5S4L4P1S1xaNax1N7x1L15x5L13x2b0L40N17"
    "P4x65L4bx4M1L1M37x7M4Ldx40L2P1L1M1xbM2xeL17f8x8L4d6x2aL9x22e7L4x1L7x1L2x1L123xfL1x1dL3x2L1xeL4x8L18cx904L6bx5Ldx"
    "3L9x7Lax2S1M2P1x1260M2ex2M17x9S74x3cSf6xaS27x2S3cM5S3M6x8M8S2M7S1eM4S3dx15S42M3S1x7aN14xcN14xcS57x9N19x87L55x1L4"
    "7x1L2x2L1x2L2x2L4x1Lcx1L1x1L7x1L41x1L4x2L8x1L7x1L1cx1L4x1L5x1L1x3L7x1L154x2L19S1L19S1L1fS1L19S1L1fS1L19S1L1fS1L1"
    "9S1L1fS1L19S1L8x2N32S200M37S4M32S8M1SeM1S2P5xfM5x1Mfx450L1fx6L6xd5M7x1M11x2M7x1M2x1M5x5L3ex21M1x70L2dx3M7L7x2Nax"
    "4L1S1x140L1eM1x11L2cM4Nax5S1x1d0L1cM4Nax2e6L7x1L4x1L2x1Lfx1Lc5x2N9M7x29L44M7L1x4Nax4P2x311N3bS1N3S1N4x4cN2dS1Nfx"
    "c2L4x1L1bx1L2x1L1x2L1x1Lax1L4x1L1x1L1x6L1x4L1x1L1x1L1x1L3x1L2x1L1x2L1x1L1x1L1x1L1x1L1x1L2x1L1x2L4x1L7x1L4x1L4x1L"
    "1x1Lax1L11x5L3x1L5x1L11x34S2x10eS2cx4S64xcSfx2Sfx1Sfx1S25xaNdSa1x38S1dxdS2cx4S9x7S2xeS6x9aS3d8x4S11x3Sdx3S77x4S5"
    "fx6Scx4S1xfScx4S38x8Sax6S28x8S1ex2S2x4eS154xcSex2Sdx3S9x7S2ex1S7x8Sex4S9x7S9x7S93x1S37x25Nax406La6e0x20L103ax6Ld"
    "ex2L1682xeL1d31xfL26ex9a2L21ex5e2L134bx5L1060xadd50Mf0"
)
_FIRST_CODE_POINT = 0x80

# Unicode's White_Space beyond ASCII. `\s` below is ASCII's (re.ASCII); these become a vertical tab, which it matches.
SPACES = {0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
_SPACE = "\v"

# What stands for a class in the shadow: any non-ASCII character will do, since all of them are replaced.
_REPRESENTATIVE = {"L": "\u00aa", "N": "\u00b2", "P": "\u00a1", "M": "\u0300", "S": "\u00a2", "x": "\u00ad"}

# What counts as Chinese: whole blocks, in which what is not assigned is no letter.
_HAN_BLOCKS = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2EBEF),
    (0x2F800, 0x2FA1F),
)
_HAN_REPRESENTATIVE = {"L": "\u4e00", "x": "\ufa6e"}

# The same classes' ASCII members, as the inside of a regex character set.
_ASCII = {"L": "A-Za-z", "N": "0-9", "P": r"!-#%-*,-/:;?@\[-\]_{}", "M": "", "S": r"$+<->\^`|~"}


Cutter = Callable[[str], list[int]]  # the shadow of a piece -> where words in it end, ascending


@dataclass(frozen=True)
class PreTokenizer:
    """One pre-tokenizer: how a text is cut into words, and how these are spelled in tokens."""

    patterns: tuple[str | Cutter, ...]  # applied one after the other, each inside the pieces the previous ones left
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    add_bos: bool = False  # the default when the file has no `tokenizer.ggml.add_bos_token`
    always_bos: bool = False  # bos is added whatever the file says
    default_bos: bool = True  # where the file names no bos token, id 11 is one
    byte_letters: bool = True  # tokens spell bytes in GPT-2's alphabet; otherwise they are text, bytes like "<0x0A>"
    marked_spaces: bool = False  # U+2581 stands for a space
    whole_newlines: bool = False  # a word of newlines that is a token is that token
    needs_merges: bool = True  # a file without merges is refused


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


_CONTRACTIONS = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_SPACES_LAST = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _gpt4_like(number: str, words: str = r"[^\r\n\p{L}\p{N}]?\p{L}+", spaces: str = _SPACES_LAST) -> str:
    """The family of tiktoken's cl100k_base; its members differ most in how many digits make a number."""
    return rf"{_CONTRACTIONS}|{words}|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{spaces}"


def _cased(number: str, after: str = "", letter: str = r"\p{L}") -> str:
    """The family of o200k_base, which cuts between a small letter and a capital one.

    llama.cpp tells only ASCII's capitals from its small letters: any other letter may stand for either.
    """
    upper, lower = f"(?:(?={letter})[^a-z])", f"(?:(?={letter})[^A-Z])"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{upper}*{lower}+{after}|{before}{upper}+{lower}*{after}|{number}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES_LAST}"
    )


def _thousands(shadow: str) -> list[int]:
    """Cuts numbers into groups of three from their ends. As in llama.cpp, the first group keeps the text before it."""
    ends: list[int] = []
    for run in _compile(r"\p{N}+").finditer(shadow):
        first = (run.end() - run.start()) % 3 or 3
        ends.extend(range(run.start() + first, run.end() + 1, 3))
    return ends


def _before_thousands(shadow: str) -> list[int]:
    """Cuts before every group of three ASCII digits, counted from the end of their run."""
    ends: list[int] = []
    for run in re.finditer("[0-9]+", shadow):
        ends.extend(range(run.start() + (run.end() - run.start()) % 3, run.end(), 3))
    return [end for end in ends if end]


# The letters with case that DeepSeek LLM's tokenizer lists: not all there are (no Georgian U+10D0, no U+1D400).
_DEEPSEEK_CASED = (
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    r"\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    r"\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    r"\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    r"\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    r"\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    r"\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    r"\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    r"\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    r"\U000118a0-\U000118df\U0001e900-\U0001e943"
)

_DEFAULT = PreTokenizer((r"[\p{P}$+<=>\^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_FALCON = PreTokenizer((r"[\p{P}$+<=>\^~|`]+", _GPT2, r"[0-9][0-9][0-9]"))
_GPT_2 = PreTokenizer((_GPT2,))
_STARCODER = PreTokenizer((r"\p{N}", _GPT2))
_QWEN2_WORDS = _gpt4_like(r"\p{N}")
_QWEN2 = PreTokenizer((_QWEN2_WORDS,))
_QWEN35 = PreTokenizer(
    (_gpt4_like(r"\p{N}", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"),)
)
_LLAMA3 = PreTokenizer((_gpt4_like(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)
_DBRX = PreTokenizer(_LLAMA3.patterns)
_CHATGLM = PreTokenizer(_LLAMA3.patterns, default_bos=False)
_GLM4 = PreTokenizer(_LLAMA3.patterns, ignore_merges=True, default_bos=False)
_MINICPM5 = PreTokenizer((r"\p{N}{1,3}", _gpt4_like(r"\p{N}+")), ignore_merges=True)
_JAIS2 = PreTokenizer(
    (
        _gpt4_like(
            r"\p{N}{1,3}",
            spaces=r"\s*[\r\n]+|" + "|".join(rf"\s{{{1 << n}}}(?!\S)" for n in range(9, 1, -1)) + r"|\s{1,2}(?!\S)|\s",
        ),
    )
)
_GPT_4O = PreTokenizer((_cased(r"\p{N}{1,3}", f"(?:{_CONTRACTIONS})?"),))
_GRANITE_EMBEDDING = PreTokenizer(
    (_cased(r"\p{N}{1,3}", f"(?:{_CONTRACTIONS})?", r"[\p{L}\p{M}]"),), ignore_merges=True
)
_TEKKEN = PreTokenizer((_cased(r"\p{N}"),), ignore_merges=True, add_bos=True)
_BAILING = PreTokenizer((_gpt4_like(r"\p{N}", spaces=r"\s*[\r\n]|\s+(?!\S)|\s+"),))
_SEED_CODER = PreTokenizer((_QWEN2_WORDS.replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+"),))
_NO_CONTRACTIONS = PreTokenizer((_QWEN2_WORDS.removeprefix(_CONTRACTIONS + "|"),))
_LAGUNA = PreTokenizer((r"[^\n]+|[\n]+", *_QWEN2.patterns))
_EXAONE_MOE = PreTokenizer(
    (
        _gpt4_like(
            r"\p{N}",
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
            r"\s*[\r\n]|\s+(?!\S)|\s+",
        ).replace(r"]+[\r\n]*|", r"]+[\r\n/]?|"),
    )
)
_DEEPSEEK_LLM = PreTokenizer(
    (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_CASED}]+",
        r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        # Without the lookbehind a long run of spaces in the middle would be tried from each of its spaces.
        r"(?<!\s)\s+\Z",
        r"[\u0800-\u9fa5\uac00-\ud7ff]+",
        r"\p{N}+",
    )
)
_DEEPSEEK_CODER = PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\u0800-\u9fa5\uac00-\ud7ff]+", r"\p{N}"))
_DEEPSEEK_3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
)
_DEEPSEEK_3 = PreTokenizer(
    (r"\p{N}{1,3}", r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", rf"{_DEEPSEEK_3_WORDS}[\r\n]*|{_SPACES_LAST}")
)
_SPARK = PreTokenizer((*_DEEPSEEK_3.patterns[:2], rf"{_DEEPSEEK_3_WORDS}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"))
_BLOOM = PreTokenizer((r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+",))
_VIKING = PreTokenizer((*_BLOOM.patterns, r"\p{N}"))
_AFMOE = PreTokenizer(
    (
        _thousands,
        # From U+8C48, though U+F900 is meant: the source has lost that character to its normal form.
        r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
        r"\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
        _DEEPSEEK_3.patterns[2],
    )
)
_ANY_CASE = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+(?:{_CONTRACTIONS})?"
_TINY_AYA = PreTokenizer((_thousands, rf"{_ANY_CASE}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES_LAST}"))
_YOUTU = PreTokenizer(
    (
        r"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f"
        r"\ufe30-\ufe4f]+|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        rf"{_ANY_CASE}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES_LAST}",
    ),
    ignore_merges=True,
)
_KIMI_K2 = PreTokenizer(
    (
        rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?(?:(?!\p{{Han}})\p{{L}})+(?:{_CONTRACTIONS})?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES_LAST}",
    ),
    needs_merges=False,
)
_SUPERBPE = PreTokenizer((r"\p{N}+", _before_thousands))
_LINES = r"[^\n]+|[\n]+"
_GEMMA4 = PreTokenizer((_LINES,), always_bos=True, byte_letters=False, marked_spaces=True, whole_newlines=True)
_SARVAM = PreTokenizer((_LINES,), byte_letters=False, marked_spaces=True)
_WHITESPACE = PreTokenizer((r"\S+",), byte_letters=False)
_CHAMELEON = PreTokenizer(
    (
        r"<sentinel:[0-9]+>",
        r"IMGIMG[A-I]{1,4}Z",
        r"[\t\n]|    |  ",
        r"\p{N}",
        r"[\p{P}!-/:-@\[-`{-~]",
        _GPT2,
    ),
    add_bos=True,
)

_NAMES = {
    "default": _DEFAULT,
    "falcon": _FALCON,
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert exaone4 jina-v1-en "
    "jina-v2-code roberta-bpe": _GPT_2,
    "mpt olmo jais trillion granite-docling": _GPT_2,
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": _STARCODER,
    "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2": _QWEN2,
    "qwen35": _QWEN35,
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": _LLAMA3,
    "dbrx smaug-bpe": _DBRX,
    "chatglm-bpe": _CHATGLM,
    "glm4 glm5": _GLM4,
    "minicpm5": _MINICPM5,
    "jais-2": _JAIS2,
    "gpt-4o llama4 kanana2 talkie minimax-m2": _GPT_4O,
    "granite-embed-multi-97m": _GRANITE_EMBEDDING,
    "tekken": _TEKKEN,
    "bailingmoe bailingmoe2 llada-moe": _BAILING,
    "seed-coder": _SEED_CODER,
    "ufakzeka": _NO_CONTRACTIONS,
    "laguna": _LAGUNA,
    "exaone-moe": _EXAONE_MOE,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": _DEEPSEEK_3,
    "spark2_5": _SPARK,
    "poro-chat bloom gpt3-finnish": _BLOOM,
    "viking": _VIKING,
    "chameleon": _CHAMELEON,
    "afmoe": _AFMOE,
    "tiny_aya cohere2moe": _TINY_AYA,
    "youtu": _YOUTU,
    "kimi-k2": _KIMI_K2,
    "superbpe": _SUPERBPE,
    "gemma4 granite-embed-multi-311m": _GEMMA4,
    "sarvam-moe": _SARVAM,
    "whitespace": _WHITESPACE,
}
PRETOKENIZERS: dict[str, PreTokenizer] = {name: pre for names, pre in _NAMES.items() for name in names.split()}
"""Every supported `tokenizer.ggml.pre`. Source: llama.cpp src/llama-vocab.cpp, where a row's names mean the same."""


class _ClassShadow(dict[int, str]):
    """A `str.translate` table that fills itself: code point -> the representative of its class, ASCII as it is."""

    def __missing__(self, code_point: int) -> str:
        if code_point < _FIRST_CODE_POINT:
            return self.setdefault(code_point, chr(code_point))
        of_class = _HAN_REPRESENTATIVE if _in_han_block(code_point) else _REPRESENTATIVE
        return self.setdefault(code_point, of_class[class_of(code_point)])


@functools.cache
def _run_table() -> tuple[list[int], list[str]]:
    """The first code point of every run, ascending, and its class letter."""
    starts, letters, at = [], [], _FIRST_CODE_POINT
    for letter, length in re.findall("([LNPMSx])([0-9a-f]+)", _RUNS):
        starts.append(at)
        letters.append(letter)
        at += int(length, 16)
    return [*starts, at], [*letters, "x"]


def class_of(code_point: int) -> str:
    """The class letter of a code point from U+0080 up."""
    starts, letters = _run_table()
    return letters[bisect.bisect_right(starts, code_point) - 1]


def _in_han_block(code_point: int) -> bool:
    return any(first <= code_point <= last for first, last in _HAN_BLOCKS)


_SPACE_SHADOW = dict.fromkeys(SPACES, _SPACE)
_CLASS_SHADOW = _ClassShadow(_SPACE_SHADOW)


@functools.cache
def _compile(pattern: str) -> re.Pattern[str]:
    """A pattern over the shadow: each `\\p{X}` becomes its ASCII members and its representatives."""
    parts = re.split(r"(\[[^\]]*\])", pattern)  # the character sets, which take members without brackets of their own
    members = {f"\\p{{{letter}}}": ascii_part + _REPRESENTATIVE[letter] for letter, ascii_part in _ASCII.items()}
    members["\\p{L}"] += _HAN_REPRESENTATIVE["L"]
    members["\\p{Han}"] = "".join(_HAN_REPRESENTATIVE.values())
    for name, inside in members.items():
        parts = [p.replace(name, inside if p.startswith("[") else f"[{inside}]") for p in parts]
    return re.compile("".join(parts), re.ASCII)


class Splitter:
    """Cuts a text into words by one pre-tokenizer; joined, the words are the text again."""

    def __init__(self, pre: PreTokenizer) -> None:
        # llama.cpp matches classes only for a pattern that names one; the others need the characters their ranges list.
        self._steps = [
            (_compile(p), _CLASS_SHADOW if "\\p{" in p else _SPACE_SHADOW) if isinstance(p, str) else (p, _CLASS_SHADOW)
            for p in pre.patterns
        ]

    def words(self, text: str) -> list[str]:
        """The words of `text` in order; linear in its length for every pattern of the table."""
        if not text:
            return []
        ends = [len(text)]
        for step, table in self._steps:
            ends = _cut(step, text if text.isascii() else text.translate(table), ends)
        starts = [0, *ends]
        return [text[start:end] for start, end in zip(starts, ends, strict=False)]


def _cut(step: re.Pattern[str] | Cutter, shadow: str, ends: list[int]) -> list[int]:
    """Where the pieces end after each was cut: by a pattern into its matches and what lies between them."""
    out: list[int] = []
    start = 0
    for end in ends:
        at = start
        if end - start > 1:  # a single character stays one whatever the step
            piece = shadow[start:end]  # a slice, since its ends are the text's for lookarounds and anchors
            if isinstance(step, re.Pattern):
                for match in step.finditer(piece):
                    if start + match.start() > at:
                        out.append(start + match.start())
                    at = start + match.end()
                    out.append(at)
            else:
                out.extend([start + place for place in step(piece)])
                at = out[-1] if out else start
        if at < end:
            out.append(end)
        start = end
    return out
