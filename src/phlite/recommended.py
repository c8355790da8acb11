"""Sampling that a model file recommends: the metadata keys `general.sampling.*`, as SamplingParams.

The keys and their meaning are llama.cpp's (common/common.cpp, common_init_sampler_from_model): a value stands until the
caller gives another one.
"""

from __future__ import annotations

import logging
from typing import TypeAlias

from phlite.engine.params import SamplingParams
from phlite.errors import ModelFileError, RequestError
from phlite.gguf import Metadata, quoted

__all__ = ["recommended_fields", "recommended_params"]

Fields: TypeAlias = "dict[str, int | float]"

PREFIX = "general.sampling."
NUMBERS = {
    "temp": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "penalty_repeat": "repeat_penalty",
}
INTEGERS = {"top_k": "top_k", "penalty_last_n": "repeat_last_n", "mirostat": "mirostat"}
REPLACED_BY_MIROSTAT = ("top_k", "top_p", "min_p", "xtc_probability")

logger = logging.getLogger("phlite")


def recommended_params(metadata: Metadata) -> SamplingParams:
    """Return SamplingParams() with the fields replaced that the file recommends.

    A sampler that the file asks for and phlite does not have is logged as a warning.

    raises: ModelFileError for a value that makes no sense
    """
    fields = recommended_fields(metadata)
    known = (*NUMBERS, *INTEGERS)
    asked = [key for key in metadata if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in known]
    missing = [quoted(key) for key in asked if isinstance(metadata[key], str) or metadata[key] != 0]
    if missing:
        logger.warning("%s recommends sampling that phlite does not have: %s", metadata.source, ", ".join(missing))
    return SamplingParams(**fields)  # type: ignore[arg-type]


def recommended_fields(metadata: Metadata) -> Fields:
    """Return what the file recommends: name of a field of SamplingParams -> value, {} for most files.

    raises: ModelFileError for a value that makes no sense
    """
    fields: Fields = {}
    for name, field in {**NUMBERS, **INTEGERS}.items():
        key = PREFIX + name
        if key not in metadata:
            continue
        value: int | float
        if name in NUMBERS:
            # Stored as float32; 0.7 shall read 0.7, not 0.699999988.
            value = float(f"{metadata.get_float(key):.7g}")
        else:
            value = metadata.get_int(key)
        if name == "top_k":
            value = max(value, 0)  # llama.cpp: 0 and less are off
        try:
            SamplingParams(**{field: value})  # type: ignore[arg-type]
        except RequestError as error:
            raise ModelFileError(f"{metadata.source}: metadata key {key!r}: {error}; repair or remove it") from None
        fields[field] = value
    if fields.get("mirostat"):
        # With mirostat llama.cpp runs no filter, whatever the file says about them.
        fields = {field: value for field, value in fields.items() if field not in REPLACED_BY_MIROSTAT}
    try:
        SamplingParams(**fields)  # type: ignore[arg-type]
    except RequestError as error:
        raise ModelFileError(f"{metadata.source}: metadata keys {PREFIX}*: {error}; repair or remove them") from None
    return fields
