"""Compile config, step keys, executables and their store, the engine. Knows executables, not text."""
