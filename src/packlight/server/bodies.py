"""What is checked of a body before anyone decodes it."""

import numpy as np

CHUNK = 1 << 20  # bytes looked at together: the arrays of one take 7 MB
QUOTE = ord('"')
STEPS = np.zeros(256, np.int8)  # what a byte outside strings adds to the depth
STEPS[[ord("["), ord("{")]] = 1
STEPS[[ord("]"), ord("}")]] = -1


def json_depth(body: bytes) -> int:
    """How many brackets of a JSON text are open at once at most, in time that grows with its length and no faster.

    Of bytes that are no JSON it is some number. Brackets inside strings count for nothing.
    """
    if b"\\" in body:  # pairs first: in \\" the quote ends a string, in \" it does not
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    everything = np.frombuffer(body, np.uint8)
    deepest = depth = 0
    inside = False  # a string, where a chunk begins
    for start in range(0, len(everything), CHUNK):
        chunk = everything[start : start + CHUNK]
        in_string = np.logical_xor.accumulate(chunk == QUOTE) ^ inside
        depths = np.cumsum(np.where(in_string, np.int8(0), STEPS[chunk]), dtype=np.int32)
        deepest = max(deepest, depth + int(depths.max()))
        depth += int(depths[-1])
        inside = bool(in_string[-1])
    return deepest
