"""A mixture of experts from both kinds of files to an answer: GGUF, and a folder that is quantised while it loads."""

import sys
from pathlib import Path

import pytest
from tiny_models import sequence_batch, write_hf_folder
from tiny_models.phimoe import random_phimoe_checkpoint, tiny_phimoe_config, write_phimoe_gguf

import phlite
from phlite import ops, packing
from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.gguf import FileType, load_gguf
from phlite.tiles import tiles_path

CONFIG = tiny_phimoe_config(max_position_embeddings=512, intermediate_size=256, num_local_experts=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf_folder(tmp_path_factory.mktemp("model") / "hf", random_phimoe_checkpoint(CONFIG, "BF16"))


def test_a_gguf_file_chats_the_same_alone_and_beside_others(tmp_path):
    path = write_phimoe_gguf(tmp_path / "tiny.gguf", random_phimoe_checkpoint(CONFIG, "Q4_K"))
    llm = phlite.load(str(path), threads=1)
    prompts = ["Hello", "a", "the sea and the old cat"]
    alone = [llm.generate(prompt, seed=3, max_tokens=12).text for prompt in prompts]
    assert [completion.text for completion in llm.generate(prompts, seed=3, max_tokens=12)] == alone
    assert len(set(alone)) == 3


def test_a_folder_quantised_while_loading_answers_as_its_converted_file(folder, tmp_path):
    with load_checkpoint(folder) as checkpoint:
        path = convert_checkpoint(checkpoint, tmp_path / "tiny.gguf", file_type=FileType.Q4_K_M)
    quantised = phlite.load(str(folder), threads=1, quant="Q4_K_M")
    converted = phlite.load(str(path), threads=1)
    expected = converted.generate("the sea", seed=5, max_tokens=24).text
    assert quantised.generate("the sea", seed=5, max_tokens=24).text == expected


def resident_bytes(path: Path) -> int:
    """Bytes of a mapped file that this process has looked at."""
    lines, total, inside = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")
def test_of_a_packed_copy_only_the_experts_of_the_tokens_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny_phimoe_config(num_hidden_layers=1, intermediate_size=2048, num_local_experts=16, vocab_size=64)
    path = write_phimoe_gguf(tmp_path / "tiny.gguf", random_phimoe_checkpoint(config, "Q8_0"))
    pool = ops.ThreadPool(2)
    copy = packing.write_packed_copy(path, pool=pool)
    assert copy == tiles_path(path)
    with load_gguf(path) as file:
        expert_bytes = sum(t.data.nbytes for t in file.tensors.values() if "_exps" in t.name) // 16
        model = packing.build_from_copy(file, pool=pool)
    assert resident_bytes(copy) < expert_bytes // 4  # loading reads no weights

    model.forward(sequence_batch([17]), model.build_kv_cache(1))
    rest_bytes = copy.stat().st_size - 16 * expert_bytes
    assert 1.9 * expert_bytes < resident_bytes(copy) < 2.5 * expert_bytes + rest_bytes
