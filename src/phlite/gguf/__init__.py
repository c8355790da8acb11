"""GGUF model files: a bounded, zero-copy reader, a streaming writer and the container's types. Knows no model."""

from phlite.gguf.cursor import quoted
from phlite.gguf.mapped import MappedFile, read_mapped
from phlite.gguf.metadata import Metadata, MetadataValue
from phlite.gguf.reader import GGUFFile, Tensor, load_gguf
from phlite.gguf.types import BLOCK_SIZES, FileType, GGMLType, ValueType, file_type_name, tensor_bytes
from phlite.gguf.writer import GGUFWriter

__all__ = [
    "BLOCK_SIZES",
    "FileType",
    "GGMLType",
    "GGUFFile",
    "GGUFWriter",
    "MappedFile",
    "Metadata",
    "MetadataValue",
    "Tensor",
    "ValueType",
    "file_type_name",
    "load_gguf",
    "quoted",
    "read_mapped",
    "tensor_bytes",
]
