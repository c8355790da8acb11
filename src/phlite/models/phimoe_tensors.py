"""The experts of a layer in a file: stacked as llama.cpp and transformers 5 store them, or one matrix each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from phlite.errors import ModelFileError
from phlite.gguf import Tensor
from phlite.ops.moe import MAX_EXPERTS

__all__ = ["split_stacks"]

_STACK = re.compile(r"(blk\.\d+\.ffn_(?:gate|up|down))_exps\.weight|(.*\.)mlp\.experts\.(gate_up|down)_proj")
_ROUTER = re.compile(r"(.*\.)mlp\.router\.weight")


def split_stacks(tensors: Mapping[str, Tensor], *, source: str) -> Mapping[str, Tensor]:
    """Return the tensors with each stack replaced by a view for every expert e, under the names of unstacked files.

    blk.N.ffn_gate_exps.weight [X, F, E]    -> blk.N.ffn_gate.e.weight [F, E]; ffn_up_exps and ffn_down_exps likewise
    ...mlp.experts.gate_up_proj [X, 2F, E]  -> ...block_sparse_moe.experts.e.w1.weight and .w3.weight [F, E]
    ...mlp.experts.down_proj [X, E, F]      -> ...block_sparse_moe.experts.e.w2.weight [E, F]
    ...mlp.router.weight [X, E]             -> ...block_sparse_moe.gate.weight, which is the same matrix

    Where there is none the mapping itself is returned: it may make its tensors only when they are asked for.

    raises: ModelFileError where a stack is none
    source: llama.cpp gguf-py tensor_mapping; transformers 5.x conversion_mapping, "phimoe"
    """
    if not any(_STACK.fullmatch(name) or _ROUTER.fullmatch(name) for name in tensors):
        return tensors
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if router := _ROUTER.fullmatch(name):
            split[f"{router[1]}block_sparse_moe.gate.weight"] = tensor
            continue
        stack = _STACK.fullmatch(name)
        if stack is None:
            split[name] = tensor
            continue
        of_gguf, prefix, part = stack.groups()
        if of_gguf:
            for e, matrix in _matrices(tensor, 1, source):
                split[f"{of_gguf}.{e}.weight"] = matrix
        else:
            parts = ("w1", "w3") if part == "gate_up" else ("w2",)
            for i, matrix in _matrices(tensor, len(parts), source):
                e, which = divmod(i, len(parts))
                split[f"{prefix}block_sparse_moe.experts.{e}.{parts[which]}.weight"] = matrix
    return split


def _matrices(tensor: Tensor, parts: int, source: str) -> Iterator[tuple[int, Tensor]]:
    """Yield the matrices of a stack, each cut into this many parts of equal rows, with their numbers."""
    if len(tensor.shape) != 3 or not 1 <= tensor.shape[0] <= MAX_EXPERTS or tensor.shape[1] % parts:
        raise ModelFileError(
            f"{source}: tensor {tensor.name!r} has shape {list(tensor.shape)}, expected a stack of 1 to "
            f"{MAX_EXPERTS} matrices, one for each expert"
        )
    n_matrices, n_rows = tensor.shape[0] * parts, tensor.shape[1] // parts
    n_bytes = tensor.data.nbytes // n_matrices
    for i in range(n_matrices):
        yield (
            i,
            replace(
                tensor,
                name=f"{tensor.name}[{i // parts}]",
                shape=(n_rows, tensor.shape[2]),
                data=tensor.data[i * n_bytes : (i + 1) * n_bytes],
                offset_bytes=tensor.offset_bytes + i * n_bytes,
            ),
        )
