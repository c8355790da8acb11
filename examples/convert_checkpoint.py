"""Convert a Hugging Face folder to GGUF, quantise it on the way, and run the result.

python examples/convert_checkpoint.py FOLDER OUT.gguf [TYPE]

Without arguments it converts nothing and only says what the embedded model's file holds.
"""

import sys

import phlite
from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.convert.mixture import parse_file_type
from phlite.gguf import load_gguf
from phlite.hub import fetch


def convert(folder: str, out: str, type_name: str = "Q4_K_M") -> None:
    """Write the file and let it answer once."""
    with load_checkpoint(folder) as checkpoint:
        path = convert_checkpoint(
            checkpoint,
            out,
            file_type=parse_file_type(type_name),
            progress=lambda name, n_bytes: print(f"{name:<32} {n_bytes:>12} bytes"),
        )
    print(phlite.load(str(path)).chat("Write a haiku about ice hockey").text)


if len(sys.argv) > 2:
    convert(*sys.argv[1:4])
else:
    with load_gguf(fetch("haiku").gguf) as file:
        for tensor in file.tensors.values():
            print(f"{tensor.name:<32} {tensor.type.name:<5} {list(tensor.shape)}")
