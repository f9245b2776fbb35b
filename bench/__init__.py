"""Measurements: files of any shape to measure on, what is measured, and the log of results."""
