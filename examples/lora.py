"""Answer the same question with and without a LoRA adapter, chosen request by request.

python examples/lora.py                              a random adapter stands in for one that was trained
python examples/lora.py phi3 path/to/peft-folder     a real one
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import phlite
from phlite.gguf import GGMLType, GGUFWriter, ValueType, load_gguf
from phlite.hub import fetch


def write_random_adapter(path: Path, model: str, rank: int = 8) -> Path:
    """Write what llama.cpp's convert_lora_to_gguf.py would write, with random numbers, for every attention output."""
    rng = np.random.default_rng(1)
    with load_gguf(fetch(model).gguf) as base, GGUFWriter(path) as adapter:
        adapter.add("general.architecture", base.metadata.get_str("general.architecture"))
        adapter.add("general.type", "adapter")
        adapter.add("adapter.type", "lora")
        adapter.add("adapter.lora.alpha", float(rank), ValueType.FLOAT32)
        for tensor in base.tensors.values():
            if tensor.name.endswith("attn_output.weight"):
                for letter, shape in (("a", (rank, tensor.shape[1])), ("b", (tensor.shape[0], rank))):
                    values = rng.normal(0.0, shape[1] ** -0.5, shape).astype(np.float32)
                    adapter.add_tensor(f"{tensor.name}.lora_{letter}", shape, GGMLType.F32, values)
    return path


with tempfile.TemporaryDirectory() as folder:
    name = sys.argv[1] if len(sys.argv) > 1 else "haiku"
    path = sys.argv[2] if len(sys.argv) > 2 else write_random_adapter(Path(folder) / "random.gguf", name)
    llm = phlite.load(name)
    adapter = llm.add_lora(path, scale=0.0)  # on request only
    for scale in (0.0, 0.1, 0.2):
        params = phlite.SamplingParams(temperature=0.0, lora={adapter: scale})
        print(f"scale {scale}:\n{llm.chat('Write a haiku about ice hockey', params).text}\n")
