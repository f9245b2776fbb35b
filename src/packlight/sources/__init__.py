"""Where models come from: names that are no paths, Hugging Face, and what other programs have on this machine."""

PREFIXES = ("hf:", "ollama:")  # of names; all else is a path
