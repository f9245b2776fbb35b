"""The container: header and tensors of a GGUF file. Knows no models."""
