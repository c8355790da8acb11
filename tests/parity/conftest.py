"""The oracles: transformers' Phi3ForCausalLM and llama.cpp, given the weights of a tiny checkpoint."""

from __future__ import annotations

import copy
import ctypes
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_models import Checkpoint, write_gguf

from phlite import ops
from phlite.models.base import CausalLM
from phlite.models.registry import load_model


@pytest.fixture(scope="session")
def quiet_llama_cpp() -> Iterator[Any]:
    """llama-cpp-python's low-level functions, without llama.cpp's log.

    The library calls what it was given until it is given something else, so the callback lives as long as the session.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("llama_cpp", reason="the oracle needs llama-cpp-python")
    silence = module.llama_log_callback(lambda level, text, data: None)
    module.llama_log_set(silence, ctypes.c_void_p(0))
    yield module
    module.llama_log_set(module.llama_log_callback(0), ctypes.c_void_p(0))


class TransformersModel:
    """Phi3ForCausalLM in float32 with a checkpoint's weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch
        from transformers import Phi3Config, Phi3ForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        self._torch = torch
        torch.set_num_threads(1)  # the products are small, and other threads are busy
        config = copy.deepcopy(checkpoint.config)  # transformers writes into the nested ones
        del config["model_type"]
        self.model = Phi3ForCausalLM(Phi3Config(**config, bos_token_id=1, eos_token_id=None, pad_token_id=0)).eval()
        state = {name: torch.from_numpy(values.copy()) for name, values in checkpoint.weights.items()}
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected
        assert missing == (["lm_head.weight"] if checkpoint.config["tie_word_embeddings"] else [])
        self.model.tie_weights()

    def logits(self, token_ids: Sequence[int], last: int = 0) -> NDArray[np.float32]:
        """Return float32[T, V], or of the last tokens only."""
        with self._torch.inference_mode():
            result = self.model(self._torch.tensor([list(token_ids)]), logits_to_keep=last)
        return result.logits[0].numpy()

    def greedy_ids(self, prompt_ids: Sequence[int], n_new: int) -> list[int]:
        """Return the ids that generate() gives without sampling."""
        prompt = self._torch.tensor([list(prompt_ids)])
        with self._torch.inference_mode():
            ids = self.model.generate(
                prompt, attention_mask=self._torch.ones_like(prompt), max_new_tokens=n_new, do_sample=False
            )
        return ids[0, len(prompt_ids) :].tolist()


@pytest.fixture(scope="session")
def transformers_model() -> Callable[[Checkpoint], TransformersModel]:
    """Build the oracle of a checkpoint."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties' imports
        pytest.importorskip("torch", reason="the oracle needs torch: pip install 'phlite[parity]'")
        pytest.importorskip("transformers", reason="the oracle needs transformers: pip install 'phlite[parity]'")
    return TransformersModel


@pytest.fixture(scope="session")
def llama_cpp_model() -> Callable[..., Any]:
    """Open a GGUF file with llama.cpp: float32 cache, no flash attention, every position's logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle needs llama-cpp-python")

    def build(path: Path, n_ctx: int) -> Any:
        return llama_cpp.Llama(
            str(path),
            n_ctx=n_ctx,
            n_threads=1,  # its threads wait busily for each other, which takes minutes on a machine at work
            logits_all=True,
            verbose=False,
            flash_attn=False,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
        )

    return build


@pytest.fixture(scope="session")
def pool() -> ops.ThreadPool:
    return ops.ThreadPool(2)


@pytest.fixture(scope="session")
def phlite_model(tmp_path_factory: pytest.TempPathFactory, pool: ops.ThreadPool) -> Callable[..., CausalLM]:
    """Write a checkpoint as GGUF and load it."""

    def build(checkpoint: Checkpoint, **file: Any) -> CausalLM:
        path = write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", checkpoint, **file)
        return load_model(path, pool=pool)

    return build


@pytest.fixture(scope="session")
def random_ids() -> Callable[[int, int], list[int]]:
    """Draw n token ids below n_vocab."""
    return lambda n, n_vocab: np.random.default_rng(n).integers(0, n_vocab, n).tolist()
