"""Hugging Face checkpoints as GGUF files.

    with load_checkpoint(folder) as checkpoint:
        convert_checkpoint(checkpoint, "model.gguf", file_type=FileType.F16)

plan.py           what a file will hold: keys, and each tensor with where its values come from
registry.py       model_type -> the function that plans it
phi3.py, ...      one file per architecture: its keys, the names and order of its tensors
vocabulary.py     tokenizer files -> tokenizer keys; sentencepiece.py and byte_level.py for the two kinds
choose.py         the block format of each tensor
tensor_data.py    values of a tensor in the bytes of its type
write.py          all of it into a file

To add an architecture, write `plan_<name>(checkpoint) -> Conversion` in a file of its own and name it in
registry.PLANS. It parses config.json with the model's own config class, then names every tensor of the checkpoint once
with a `Planner`: `matrix` (rows of one or several tensors, in order or reordered), `stack` (experts), `vector` (norms
and biases, kept as F32) and `values` (lists from the config). A tensor without a place is an error. Keys and names are
llama.cpp's where it has the architecture.
"""

from phlite.convert.plan import Conversion, PlannedTensor, Planner
from phlite.convert.registry import PLANS, plan_conversion
from phlite.convert.write import convert_checkpoint, default_type

__all__ = [
    "PLANS",
    "Conversion",
    "PlannedTensor",
    "Planner",
    "convert_checkpoint",
    "default_type",
    "plan_conversion",
]
