"""Tensors on devices: read from the file, stacked by format, placed."""
