"""The keys of a Hugging Face config.json, type-checked at use, with a record of which were used."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import NoReturn

from phlite.errors import ModelFileError

INERT_KEYS = frozenset(
    {
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "full_attn_mod",
        "id2label",
        "initializer_range",
        "interpolate_factor",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
"""Keys of config.json that do not change what a network computes at inference."""


class HFConfig:
    """One JSON object of a config: typed access for model files. null counts as absent.

    source: what the object is called in messages, such as "config.json"
    """

    def __init__(self, values: Mapping[str, object], *, source: str) -> None:
        self.source = source
        self._values = {key: value for key, value in values.items() if value is not None}
        self._used: set[str] = set()

    def get_int(self, key: str, default: int | None = None, *, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        """Return an integer in minimum..maximum; raises ModelFileError for any other value, or without one."""
        value = self._read(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            self._refuse(key, value, f"an integer from {minimum} to {maximum}")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0; raises ModelFileError for any other value, or without one."""
        value = self._read(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value <= 0:
            self._refuse(key, value, "a finite number above 0")
        return float(value)

    def get_bool(self, key: str, default: bool) -> bool:
        """Return a bool; raises ModelFileError for any other value."""
        value = self._read(key, default)
        if not isinstance(value, bool):
            self._refuse(key, value, "true or false")
        return value

    def get_str(self, key: str, default: str) -> str:
        """Return a string; raises ModelFileError for any other value."""
        value = self._read(key, default)
        if not isinstance(value, str):
            self._refuse(key, value, "a string")
        return value

    def get_floats(self, key: str) -> tuple[float, ...]:
        """Return a list of finite numbers above 0; raises ModelFileError for any other value, or without one."""
        value = self._read(key, None)
        if not isinstance(value, list):
            self._refuse(key, value, "a list of numbers")
        for number in value:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not (0 < number < float("inf")):
                self._refuse(key, number, "finite numbers above 0")
        return tuple(float(number) for number in value)

    def get_object(self, key: str) -> HFConfig:
        """Return a nested object, an empty one where the key is absent; raises ModelFileError for another value."""
        value = self._read(key, {})
        if not isinstance(value, Mapping):
            self._refuse(key, value, "an object")
        return HFConfig(value, source=f"{self.source}: {key}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def unused(self) -> list[str]:
        """Keys with a value that no accessor has read, in file order."""
        return [key for key in self._values if key not in self._used]

    def _read(self, key: str, default: object) -> object:
        self._used.add(key)
        return self._values.get(key, default)

    def _refuse(self, key: str, value: object, expected: str) -> NoReturn:
        got = "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
        raise ModelFileError(f"{self.source}: key {key!r}: got {got}, expected {expected}")
