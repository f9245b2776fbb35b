"""Packed weights: formats, QTensor, matrix products. Knows bytes, not models."""
