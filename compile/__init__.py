"""Compile config, step keys, executables and their store. Knows executables, not text."""
