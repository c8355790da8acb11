"""Small random models of the real architecture, written as GGUF files, with a float64 definition to compare with.

config = tiny_config(num_key_value_heads=2)                 # a config.json, Phi-3's names
checkpoint = random_checkpoint(config, "Q4_K", seed=1)      # quantised tensors and the floats they mean
write_gguf(path, checkpoint)                                # what phlite loads
write_hf_folder(folder, checkpoint)                         # and as a Hugging Face folder of safetensors
logits = reference_logits(config, checkpoint.weights, ids)  # float64[T, V]
"""

from tiny_models.checkpoint import Checkpoint, StoredTensor, random_checkpoint, tiny_config
from tiny_models.gguf_file import permute_for_interleaved_rope, write_gguf
from tiny_models.hf_folder import stored, write_hf_folder, write_safetensors
from tiny_models.members import LONG_FACTOR, LONGROPE, MEMBERS, SHORT_FACTOR
from tiny_models.random_blocks import BLOCK_FORMATS, random_matrix
from tiny_models.reference import int8_activations, reference_logits
from tiny_models.run import all_logits, greedy_ids, sequence_batch

__all__ = [
    "BLOCK_FORMATS",
    "LONGROPE",
    "LONG_FACTOR",
    "MEMBERS",
    "SHORT_FACTOR",
    "Checkpoint",
    "StoredTensor",
    "all_logits",
    "greedy_ids",
    "int8_activations",
    "permute_for_interleaved_rope",
    "random_checkpoint",
    "random_matrix",
    "reference_logits",
    "sequence_batch",
    "stored",
    "tiny_config",
    "write_gguf",
    "write_hf_folder",
    "write_safetensors",
]
