"""A model with a packed copy: the same answers, from the copy, as long as the file is the one it was made from."""

import logging
import os
import shutil

import numpy as np
import pytest

import phlite
from phlite import ops, packing
from phlite.cli import main
from phlite.gguf import load_gguf
from phlite.hub import resolve
from phlite.tiles import StoredTiles, TileWriter, tiles_path


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copy2(resolve("haiku").path, tmp_path / "model.gguf")


def logits_of(path):
    llm = phlite.load(str(path), threads=2)
    engine = llm.engine
    sequence = engine.add(llm.prompt_ids("The puck"), phlite.SamplingParams(max_tokens=8, temperature=0, logprobs=3))
    while sequence.finish_reason is None:
        engine.step()
    return [(row.token_id, row.logprob) for row in sequence.logprobs]


def test_a_packed_model_answers_bit_for_bit_as_before(model, capsys):
    before = logits_of(model)

    assert main(["pack", str(model)]) == 0
    assert "packed in" in capsys.readouterr().err

    with load_gguf(model) as file:
        assert isinstance(packing.packed_copy(file), StoredTiles)
    assert logits_of(model) == before


def test_a_packed_model_runs_from_its_copy(model):
    main(["pack", str(model)])
    with load_gguf(model) as file:
        stored = packing.packed_copy(file)
        built = packing.build_model(file, pool=ops.ThreadPool(1), tiles=stored)

    assert np.shares_memory(built.lm_head.weight.tiles, stored.find("none lm_head.weight"))


def test_a_changed_model_file_is_not_run_from_its_old_copy(model, caplog):
    main(["pack", str(model)])
    os.utime(model, ns=(1, 1))

    with caplog.at_level(logging.WARNING, "phlite"):
        llm = phlite.load(str(model))

    assert "another version of the file" in caplog.text
    assert llm.chat("ice", max_tokens=2, temperature=0).text is not None


def test_remove_deletes_the_copy_and_says_when_there_is_none(model, capsys):
    main(["pack", str(model)])

    assert main(["pack", str(model), "--remove"]) == 0
    assert "deleted the packed copy" in capsys.readouterr().err
    assert not tiles_path(model).exists()
    assert main(["pack", str(model), "--remove"]) == 0
    assert "no packed copy" in capsys.readouterr().err


def test_weights_beyond_memory_run_from_a_copy_with_a_warning(model, monkeypatch, caplog):
    before = logits_of(model)
    monkeypatch.setattr(packing, "available_memory_bytes", lambda: 100_000)

    with caplog.at_level(logging.WARNING, "phlite"):
        after = logits_of(model)

    assert after == before
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{os.stat(model).st_size / 1e9:.2f} GB of weights and 0.00 GB of free memory" in warning
    assert tiles_path(model).exists()


def test_the_model_runs_from_the_file_that_is_being_written(model):
    with load_gguf(model) as file, TileWriter(tiles_path(model), "x", model_bytes=file.n_bytes) as writer:
        kept = []
        keep = writer.keep
        writer.keep = lambda key, tiles: kept.append(keep(key, tiles)) or kept[-1]
        built = packing.build_model(file, pool=ops.ThreadPool(1), tiles=writer)

    weight = built.lm_head.weight
    assert any(np.shares_memory(weight.tiles, view) for view in kept)
