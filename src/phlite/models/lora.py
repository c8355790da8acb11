"""The way from an adapter's file to an `Adapter` of a model: names and shapes matched, matrices packed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from phlite import ops
from phlite.errors import ModelFileError, UnsupportedModelError
from phlite.gguf import GGMLType, Tensor, quoted
from phlite.layers.lora import Adapter, LowRank, Product
from phlite.models.base import Adaptable, CausalLM, LoraTargets
from phlite.models.lora_file import AdapterFile, Pair, load_adapter_file
from phlite.ops.linear import MatrixPart

__all__ = ["load_adapter"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

FLOATS = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def load_adapter(path: str | os.PathLike[str], model: CausalLM, *, name: str) -> Adapter:
    """Return the adapter in a PEFT folder or a GGUF file, packed for this machine; nothing of the model changes.

    The caller sees to it that nobody else uses the model meanwhile, since packing runs on its threads.
    name:   what requests call it
    raises: ModelFileError where the file is damaged or contradicts itself; UnsupportedModelError where it belongs to
            another model, changes what adapters cannot change here, or the model takes no adapters
    """
    file = load_adapter_file(path)
    if not isinstance(model, Adaptable):
        raise UnsupportedModelError(f"{file.source}: {type(model).__name__} takes no LoRA adapters; merge it instead")
    targets = model.lora_targets()
    if file.architecture is not None and file.architecture != targets.architecture:
        raise UnsupportedModelError(
            f"{file.source}: an adapter for architecture {quoted(file.architecture)}, but the model's is "
            f"{targets.architecture!r}; expected an adapter that was trained on this model"
        )
    placed: dict[str, list[tuple[Pair, Product]]] = {}
    for pair in file.pairs:
        product = find_product(pair, targets, file)
        check_shapes(pair, product, file)
        placed.setdefault(product.linear.name, []).append((pair, product))
    return Adapter(name, {linear: build_low_rank(parts, file) for linear, parts in placed.items()})


def find_product(pair: Pair, targets: LoraTargets, file: AdapterFile) -> Product:
    """Return the product that a pair changes; raises UnsupportedModelError where there is none."""
    modules = [pair.name] if file.architecture is None else module_names(pair.name, targets)
    found = [targets.products[module] for module in modules if module in targets.products]
    if not found:
        known = sorted({module.rpartition(".")[2] for module in targets.products})
        raise UnsupportedModelError(
            f"{file.source}: {quoted(pair.name)} is nothing that an adapter can change in this model; expected layers "
            f"of the model, and in them {', '.join(known)}: is it for another model?"
        )
    # ffn_up is the GGUF name of two modules, gate_up_proj and up_proj: the rows tell which.
    return next((product for product in found if len(product.rows) == pair.b.shape[0]), found[0])


def module_names(tensor_name: str, targets: LoraTargets) -> list[str]:
    """Return the Hugging Face modules that a GGUF tensor name may mean."""
    layer = LAYER_NUMBER.search(tensor_name)
    pattern = tensor_name if layer is None else LAYER_NUMBER.sub("*", tensor_name, count=1)
    names = [name for name, gguf_name in targets.gguf_names.items() if gguf_name == pattern]
    return [name.replace("*", layer[0] if layer else "*").removesuffix(".weight") for name in names]


def check_shapes(pair: Pair, product: Product, file: AdapterFile) -> None:
    """Raise UnsupportedModelError unless A takes the product's input and B gives the module's rows."""
    n_rows, n_cols = len(product.rows), product.linear.weight.n_cols
    if pair.a.shape[1] != n_cols or pair.b.shape[0] != n_rows:
        raise UnsupportedModelError(
            f"{file.source}: {quoted(pair.name)} is for a matrix of {pair.b.shape[0]} x {pair.a.shape[1]}, the model's "
            f"is {n_rows} x {n_cols}; expected an adapter that was trained on this model"
        )


def build_low_rank(parts: list[tuple[Pair, Product]], file: AdapterFile) -> LowRank:
    """Pack what one adapter adds to one product, for one module or several that share it.

    The A of several modules stand one below the other; their B lie on the diagonal of a matrix of zeros.
    """
    for pair, _ in parts:
        for tensor in (pair.a, pair.b):
            check_finite(tensor, file)
    linear = parts[0][1].linear
    scaling = np.concatenate([np.full(pair.a.shape[0], pair.scaling, np.float32) for pair, _ in parts])
    pair, product = parts[0]
    rows = rows_in_product(product, file)
    if len(parts) == 1 and np.array_equal(rows, np.arange(linear.weight.n_rows)):
        b = pack([pair.b], linear.pool)
    else:
        b = pack_values(placed_columns(parts, file), linear.pool)
    return LowRank(pack([pair.a for pair, _ in parts], linear.pool), b, scaling)


def placed_columns(parts: list[tuple[Pair, Product]], file: AdapterFile) -> F32:
    """Return float32[N_pre, sum of r]: each module's B in its own rows and columns, zero elsewhere."""
    n_rows, n_columns = parts[0][1].linear.weight.n_rows, sum(pair.a.shape[0] for pair, _ in parts)
    values = np.zeros((n_rows, n_columns), np.float32)
    first = 0
    taken = np.zeros(n_rows, bool)
    for pair, product in parts:
        rows = rows_in_product(product, file)
        if taken[rows].any():
            raise ModelFileError(
                f"{file.source}: {quoted(pair.name)} changes rows that another module of the adapter changes too; "
                "expected either a stacked matrix or its parts"
            )
        taken[rows] = True
        values[rows, first : first + pair.a.shape[0]] = ops.dequantize(pair.b.data, pair.b.type, pair.b.shape)
        first += pair.a.shape[0]
    return values


def rows_in_product(product: Product, file: AdapterFile) -> I32:
    """Return int32[n], where the rows of an adapter's B go."""
    return product.hf_rows if file.architecture is None else product.rows


def check_finite(tensor: Tensor, file: AdapterFile) -> None:
    """Raise ModelFileError for a matrix with NaN or infinite values."""
    if not np.isfinite(ops.dequantize(tensor.data, tensor.type, tensor.shape)).all():
        raise ModelFileError(f"{file.source}: tensor {quoted(tensor.name)} holds NaN or infinite values: it is damaged")


def pack(tensors: Iterable[Tensor], pool: ops.ThreadPool) -> ops.PackedMatrix:
    """Return the stacked matrices packed, as they are if they are floats, otherwise as the floats that they mean."""
    parts: list[MatrixPart] = []
    n_cols = 0
    for tensor in tensors:
        n_rows, n_cols = tensor.shape
        if tensor.type in FLOATS:
            parts.append((tensor.data, tensor.type, n_rows))
        else:
            values = ops.dequantize(tensor.data, tensor.type, tensor.shape)
            parts.append((values.view(np.uint8).reshape(-1), GGMLType.F32, n_rows))
    return ops.pack_matrix(parts, n_cols, pool=pool)


def pack_values(values: F32, pool: ops.ThreadPool) -> ops.PackedMatrix:
    """Return float32[n, r] packed."""
    return ops.pack_matrix([(values.view(np.uint8).reshape(-1), GGMLType.F32, len(values))], values.shape[1], pool=pool)
