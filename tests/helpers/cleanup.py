"""llama_detokenize's tidying of spaces, which `Tokenizer.decode` leaves out: what its texts are compared through."""

import re


def cleaned(text: bytes) -> bytes:
    """llama_detokenize's three clean-up passes, which `decode` leaves out."""
    text = re.sub(rb"(?<=.) (?=[?!.,])", b"", b"\0" + text, flags=re.S)[1:] if text else text
    out, i, spaced = bytearray(text[:1]), 1, text[:1] == b" "
    while i < len(text):  # a lone apostrophe loses the spaces around it, and the one behind counts for no other
        lone = spaced and text[i : i + 2] == b"' "
        if lone:
            del out[-1:]
        out += text[i : i + 1]
        spaced = text[i : i + 1] == b" "
        i += 2 if lone else 1
    return re.sub(rb" (?='(?:s|m|re|ve))", b"", bytes(out))
