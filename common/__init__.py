"""Errors, files and text: what every room stands on. Knows nothing of ours."""
