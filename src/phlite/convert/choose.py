"""Which block format each tensor of a file gets under the name of a file type, such as F16 or Q4_K_M."""

from __future__ import annotations

from phlite.convert.plan import Conversion
from phlite.errors import RequestError
from phlite.gguf import FileType, GGMLType

__all__ = ["choose_types"]

_FLOATS = {FileType.F32: GGMLType.F32, FileType.F16: GGMLType.F16, FileType.BF16: GGMLType.BF16}


def choose_types(conversion: Conversion, file_type: FileType) -> dict[str, GGMLType]:
    """Return the type of each tensor by its name in the file.

    raises: RequestError for a file type that cannot be written
    """
    if file_type not in _FLOATS:
        raise RequestError(f"type {file_type.name}: expected one of {', '.join(kind.name for kind in _FLOATS)}")
    matrix_type = _FLOATS[file_type]
    return {tensor.name: GGMLType.F32 if tensor.keeps_f32 else matrix_type for tensor in conversion.tensors}
