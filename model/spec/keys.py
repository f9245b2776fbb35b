"""Typed reads of a GGUF file's metadata, for one architecture. Imports no jax."""

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from packlight.common.errors import GGUFError, UnsupportedError
from packlight.common.text import near, shown
from packlight.model.spec.architectures import ARCHITECTURES

MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS: nothing sound is above it
_PROJECTORS = ("clip", "mmproj")  # `general.architecture` of files beside multimodal models
# Keys of what is not run here, images, and of how a converter laid out what a file's tensors say themselves.
_UNNEEDED = ("n_deepstack_layers", "tensor_data_layout")
_USUAL = ("llama", "qwen3", "gemma3", "phi3", "gpt-oss")


class Keys:
    """Typed reads of one architecture's keys that remember what was read and what was defaulted."""

    layers = blocks = 0  # of the model, and with those that are skipped: what arrays of the file are as long as

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        self._read: set[str] = set()
        self.defaulted: list[tuple[str, Any]] = []
        name = metadata.get("general.architecture")
        if not isinstance(name, str):
            raise GGUFError("key 'general.architecture' is missing or no string")
        if name not in ARCHITECTURES:
            if name in _PROJECTORS:
                raise UnsupportedError(
                    f"key 'general.architecture': '{name}' is the half of a model that reads images or sound (mmproj); "
                    "the file beside it holds the language model"
                )
            others = near(name[:64], ARCHITECTURES) or f"; among them are {', '.join(_USUAL)}"
            raise UnsupportedError(
                f"key 'general.architecture': unknown architecture '{shown(name)}'; {len(ARCHITECTURES)} are supported "
                f"(docs/models.md){others}"
            )
        self.architecture = ARCHITECTURES[name]

    def fail(self, key: str, why: str) -> NoReturn:
        raise GGUFError(f"key '{self.full(key)}': {why}")

    def full(self, key: str) -> str:
        return f"{self.architecture.name}.{key}"

    def get(self, key: str, default: Any = None) -> Any:
        """The value at `key`; `default` (recorded as such) when absent; an error when there is no default either."""
        full = self.full(key)
        self._read.add(full)
        if full in self._metadata:
            return self._metadata[full]
        if default is None:
            raise GGUFError(f"mandatory key '{full}' is missing")
        self.defaulted.append((full, default))
        return default

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1) -> int:
        return self._checked(key, self.get(key, default), low, high)

    def integers(self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1) -> tuple[int, ...]:
        """A number for each layer, from an array with one for each block or from one number for all."""
        value = self.get(key, default)
        if not isinstance(value, np.ndarray):
            return (self._checked(key, value, low, high),) * self.layers
        return tuple(self._checked(key, each, low, high) for each in self._array(key, value).tolist())[: self.layers]

    def truths(self, key: str) -> tuple[bool, ...]:
        """Whether something is so, for each layer, from an array with one value for each block."""
        found = self.get(key)
        if not isinstance(found, np.ndarray) or len(found) != self.blocks or found.dtype.kind not in "biu":
            self.fail(key, f"is no array of {self.blocks} truth values, one for each layer")
        return tuple(bool(each) for each in found)[: self.layers]

    def _array(self, key: str, value: np.ndarray) -> np.ndarray:
        if len(value) != self.blocks:
            self.fail(key, f"has {len(value)} elements for {self.blocks} layers")
        return value

    def _checked(self, key: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int:
            self.fail(key, f"is {_kind(value)}, an integer is needed")
        if not low <= value <= high:
            self.fail(key, f"{value} is outside {low}..{high}")
        return value

    def number(self, key: str, default: float | None, low: float, high: float) -> float:
        value = self.get(key, default)
        if type(value) is not float:
            self.fail(key, f"is {_kind(value)}, a floating-point number is needed")
        if not low <= value <= high:  # NaN is not either
            self.fail(key, f"{value} is outside {low}..{high}")
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        value = self.get(key, default)
        if type(value) is not bool:
            self.fail(key, f"is {_kind(value)}, a bool is needed")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            self.fail(key, f"is {_kind(value)}, a string is needed")
        return value

    def has(self, key: str) -> bool:
        return self.full(key) in self._metadata

    def numbers(self, key: str) -> list[float]:
        """A number for each layer, from a key that does not begin with the architecture's name."""
        value = self._metadata.get(key)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not np.isfinite(value).all():
            raise GGUFError(f"key '{key}' is missing or no array of finite numbers")
        if len(value) != self.blocks:
            raise GGUFError(f"key '{key}': has {len(value)} elements for {self.blocks} layers")
        return value.tolist()[: self.layers]

    @property
    def tokens(self) -> Any:
        return self._metadata.get("tokenizer.ggml.tokens")

    @property
    def token_types(self) -> int:
        """How many types of tokens there are."""
        key = "tokenizer.ggml.token_type_count"
        found = self._metadata.get(key)
        if type(found) is not int or not 1 <= found <= 1024:
            raise GGUFError(f"key '{key}' is missing or no integer from 1 to 1024")
        return found

    @property
    def model_name(self) -> str:
        """The model's own name, "" if it has none: nothing depends on it."""
        name = self._metadata.get("general.name")
        return name if isinstance(name, str) else ""

    def unread(self) -> tuple[str, ...]:
        prefix, known = self.full(""), {*self._read, *map(self.full, _UNNEEDED)}
        return tuple(sorted(key for key in self._metadata if key.startswith(prefix) and key not in known))


def _kind(value: Any) -> str:
    kinds = {bool: "a bool", int: "an integer", float: "a floating-point number", str: "a string"}
    return kinds.get(type(value), "an array")


def unless_equal(values: tuple[int, ...]) -> tuple[int, ...]:
    """A number for each layer, () where all are the same."""
    return values if len(set(values)) > 1 else ()
