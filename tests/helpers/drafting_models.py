"""What tests of drafts load the embedded model with, and a text that repeats itself."""

import packlight

CONFIG = packlight.CompileConfig(
    context=192,
    prefill_buckets=(16,),
    decode_batch=(1, 2),
    head_rows=1,
    speculate=(2, 4),
    cpu_kernels="native",
)
REPEATS = [*range(40, 60), *range(40, 55)]
