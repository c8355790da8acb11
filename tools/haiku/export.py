"""Writes a trained haiku model as one GGUF file in llama.cpp's phi3 form.

python tools/haiku/export.py build/haiku src/phlite/assets/haiku.gguf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizer import N_RESERVED, SPECIAL_TOKENS, Vocabulary, load_vocabulary

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] in ['system', 'user', 'assistant'] %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""Renders the same text as the template of Phi-3-mini's current tokenizer_config.json."""

FUSED_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The GGUF name of a transformers tensor: `model.layers.0.mlp.down_proj.weight` is `blk.0.ffn_down.weight`."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{FUSED_NAMES[part]}.weight"


def export(folder: Path, path: Path, quantisation: gguf.GGMLQuantizationType, *, sharpen: float) -> None:
    """Write `path` from `folder/model` and `folder/vocabulary.json`; norms stay float32.

    sharpen: multiplies the output matrix, and so every logit: the file at temperature T is the model at T / sharpen.
    """
    config = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "phi3")
    _add_architecture(writer, config, quantisation)
    _add_vocabulary(writer, load_vocabulary(folder))
    for name, tensor in sorted(load_file(folder / "model" / "model.safetensors").items(), key=_layer_order):
        values: NDArray[np.float32] = tensor.astype(np.float32) * np.float32(sharpen if name == "lm_head.weight" else 1)
        if values.ndim == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layer_order(item: tuple[str, object]) -> tuple[int, str]:
    """Sorts the embedding first, the layers by number, the output last."""
    name = gguf_name(item[0])
    if name.startswith("blk."):
        return int(name.split(".")[1]), name
    return (-1, name) if name.startswith("token_embd") else (1 << 30, name)


def _add_architecture(writer: gguf.GGUFWriter, config: dict[str, Any], quantisation: gguf.GGMLQuantizationType) -> None:
    # llama.cpp lets markers swallow the line feed after them only in files whose name says Phi-3.
    writer.add_name("Phi-3 haiku")
    writer.add_description("phlite's demonstration model: a toy that writes haiku")
    writer.add_license("mit")
    writer.add_languages(["en"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_sliding_window(0)
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{quantisation.name}"))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # A poem may say "the" in each line: the usual repeat penalty would drive it to words that do not fit.
    writer.add_sampling_temp(0.7)
    writer.add_sampling_penalty_repeat(1.0)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Pieces with scores that fall along the merge order, so that the best-scored pair merges first."""
    n_merged_end = len(vocabulary.pieces) - len(SPECIAL_TOKENS)
    scores = [0.0] * N_RESERVED + [-float(i) for i in range(1, n_merged_end - N_RESERVED + 1)]
    scores += [-1000.0] * len(SPECIAL_TOKENS)
    control, unknown = gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN
    types = [unknown, control, control] + [gguf.TokenType.BYTE] * 256
    types += [gguf.TokenType.NORMAL] * (n_merged_end - N_RESERVED) + [control] * len(SPECIAL_TOKENS)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(vocabulary.pieces))
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(vocabulary.id_of("<s>"))
    writer.add_eos_token_id(vocabulary.id_of("<|endoftext|>"))
    writer.add_eot_token_id(vocabulary.id_of("<|end|>"))
    writer.add_unk_token_id(vocabulary.id_of("<unk>"))
    writer.add_pad_token_id(vocabulary.id_of("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what train.py wrote")
    parser.add_argument("path", type=Path, help="the GGUF file to write")
    parser.add_argument("--type", default="Q8_0", help="block format of the matrices")
    parser.add_argument("--sharpen", type=float, default=1.6, help="factor on the logits")
    args = parser.parse_args()
    export(args.folder, args.path, gguf.GGMLQuantizationType[args.type], sharpen=args.sharpen)


if __name__ == "__main__":
    main()
