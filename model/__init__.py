"""The model: a GGUF file, its configuration, parameters and forward pass. Knows models, not executables.

Axis letters, used in names, comments and einsums everywhere:

    B  batch (cache slots)      D  embed                C  head dim
    T  query time               F  ffn                  V  vocab
    S  cache time               H  query heads          N  blocks per row
    L  layers                   K  kv heads             G  query heads per kv head (H / K)
    E  experts                  X  experts used per token
    J  heads of a recurrence: key heads of a delta net, heads of Mamba-2
    U  groups of Mamba-2's heads                        P  per-layer inputs

Weights are `(out, in)` everywhere and carry their GGUF names.
"""
