"""Requests over executables: slots, steps, what became of each. Knows ids and time, no terminal."""
