"""A mixture of experts from both kinds of files to an answer: GGUF, and a folder that is quantised while it loads."""

import pytest
from tiny_models import write_hf_folder
from tiny_models.phimoe import random_phimoe_checkpoint, tiny_phimoe_config, write_phimoe_gguf

import phlite
from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.gguf import FileType

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
