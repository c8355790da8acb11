"""LLM.load of a Hugging Face folder: as stored, quantised, and where memory is short."""

import json
import logging
from pathlib import Path

import pytest
from tiny_models import random_checkpoint, tiny_config, write_gguf, write_hf_folder

import phlite
from phlite.errors import ModelFileError, RequestError, UnsupportedModelError

CONFIG = tiny_config(max_position_embeddings=512, original_max_position_embeddings=512)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = {"do_sample": True, "temperature": 0.6, "eos_token_id": [3, 5]}
    return write_hf_folder(tmp_path / "tiny", random_checkpoint(CONFIG, "BF16", seed=41), generation_config=config)


def greedy(llm: phlite.LLM) -> list[int]:
    return llm.generate("the thing", phlite.SamplingParams.greedy(max_tokens=24)).token_ids


def test_a_folder_answers_through_its_own_template_with_its_own_ends_and_sampling(folder):
    llm = phlite.load(str(folder), threads=1)
    assert llm.default_params.temperature == 0.6
    assert {3, 5} <= llm.tokenizer.stop_ids
    ids = llm.chat_ids("the thing")
    assert ids[0] == 6  # <|user|>
    assert ids[-2:] == llm.tokenizer.encode_prompt("<|assistant|>\n")[-2:]
    assert llm.chat("the thing", seed=1, max_tokens=5).completion_tokens > 0


@pytest.mark.parametrize("quant", ["Q8_0", "q4_k_m", "F16", "F32"])
def test_a_folder_quantised_on_load_answers_like_the_converted_file(folder, tmp_path, quant):
    from phlite.checkpoint import load_checkpoint
    from phlite.convert import convert_checkpoint
    from phlite.gguf import FileType

    with load_checkpoint(folder) as checkpoint:
        path = convert_checkpoint(checkpoint, tmp_path / "m.gguf", file_type=FileType[quant.upper()])
    assert greedy(phlite.load(str(folder), quant=quant)) == greedy(phlite.load(str(path)))


def test_weights_that_do_not_fit_are_quantised_with_a_warning_and_those_that_do_are_not(folder, monkeypatch, caplog):
    n_bytes = (folder / "model.safetensors").stat().st_size
    exact, quantised = (greedy(phlite.load(str(folder), quant=quant)) for quant in (None, "Q4_K_M"))
    assert caplog.records == []
    monkeypatch.setattr("phlite.loading.available_memory_bytes", lambda: n_bytes)
    with caplog.at_level(logging.WARNING, logger="phlite"):
        assert greedy(phlite.load(str(folder))) == quantised
    assert "quantised to Q4_K_M" in caplog.text
    caplog.clear()
    assert greedy(phlite.load(str(folder), quant="BF16")) == exact
    assert caplog.records == []


def test_a_quant_that_is_none_is_refused_with_the_possible_ones(folder):
    with pytest.raises(RequestError, match=r"'Q4_X' cannot be written; possible: .*Q4_K_M"):
        phlite.load(str(folder), quant="Q4_X")


def test_a_quant_for_a_gguf_file_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", random_checkpoint(CONFIG))
    with pytest.raises(RequestError, match="is a GGUF file, whose weights are used as they are"):
        phlite.load(str(path), quant="Q4_K_M")


def test_a_folder_without_a_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: no such file"):
        phlite.load(str(folder))


def test_a_folder_of_pickled_weights_says_why_not(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="unpickling runs whatever code"):
        phlite.load(str(folder))


def test_a_config_key_without_meaning_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UnsupportedModelError, match="'quantization_config' has no meaning"):
        phlite.load(str(folder))


def test_gguf_goes_before_a_checkpoint_in_one_folder(folder):
    write_gguf(folder / "m.gguf", random_checkpoint({**CONFIG, "vocab_size": 600}))
    assert phlite.load(str(folder), threads=1).tokenizer.vocab_size == 600
