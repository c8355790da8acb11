"""Phi-3-small written down once more in plain PyTorch: the whole sequence at once, a dense mask, no cache.

The published model is remote code that needs a GPU, and transformers has no class for it. This follows its files
modeling_phi3_small.py, configuration_phi3_small.py and triton_blocksparse_attention_layer.py, and vLLM's phi3_small.py
and blocksparse_attention/utils.py, step by step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

DUMMY_TOKEN_IDS = [100256, 100258, 100259, 100260, 100264, 100265, *range(100267, 100352)]


class Phi3SmallReference:
    """The model of a config.json and its weights by Hugging Face name."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.weights = weights

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Return [T, V], the logits after every token."""
        c = self.config
        ids = torch.tensor(list(token_ids))
        embedding = self.weights["model.embed_tokens.weight"]
        x = c["mup_embedding_multiplier"] * embedding[ids]
        for i in range(c["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            x = x + self.attention(self.norm(x, f"{layer}.input_layernorm"), i)
            x = x + self.mlp(self.norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp")
        logits = linear(self.norm(x, "model.final_layernorm"), embedding) / c["mup_width_multiplier"]
        masked = [i for i in DUMMY_TOKEN_IDS if i < len(embedding)]
        logits[:, masked] = -math.inf
        return logits

    @torch.inference_mode()
    def greedy_ids(self, prompt_ids: Sequence[int], n_new: int) -> list[int]:
        """Return the n_new most likely ids, one after the other, the whole sequence computed afresh for each."""
        ids = list(prompt_ids)
        for _ in range(n_new):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(prompt_ids) :]

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return layer_norm(x, (x.shape[-1],), weight, bias, self.config["layer_norm_epsilon"])

    def product(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def attention(self, h: Tensor, layer_idx: int) -> Tensor:
        c, name, n_tokens = self.config, f"model.layers.{layer_idx}.self_attn", len(h)
        n_heads, n_kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        head_dim, n_per_group = c["hidden_size"] // n_heads, n_heads // n_kv_heads
        # Groups of some queries, their key and their value.
        groups = self.product(h, f"{name}.query_key_value").view(n_tokens, n_kv_heads, n_per_group + 2, head_dim)
        q = groups[:, :, :-2].reshape(n_tokens, n_heads, head_dim).transpose(0, 1)
        k, v = (groups[:, :, i].transpose(0, 1).repeat_interleave(n_per_group, dim=0) for i in (-2, -1))
        q, k = self.rotate(q), self.rotate(k)
        scale = c["mup_attn_multiplier"] / head_dim if c["mup_use_scaling"] else head_dim**-0.5
        scores = (q @ k.transpose(1, 2)) * scale
        scores = scores.masked_fill(~self.visible(layer_idx, n_tokens), -math.inf)
        a = scores.softmax(-1) @ v
        return self.product(a.transpose(0, 1).reshape(n_tokens, -1), f"{name}.dense")

    def visible(self, layer_idx: int, n_tokens: int) -> Tensor:
        """Return bool [heads, T, T]: head h of a query at i sees the key at j."""
        c, n_heads = self.config, self.config["num_attention_heads"]
        i, j = torch.arange(n_tokens)[None, :, None], torch.arange(n_tokens)[None, None, :]
        causal = (j <= i).expand(n_heads, -1, -1)
        every_n = c["dense_attention_every_n_layers"]
        if every_n and (layer_idx + 1) % every_n == 0:
            return causal
        block, stride = c["blocksparse_block_size"], c["blocksparse_vert_stride"]
        step = 0 if c["blocksparse_homo_head_pattern"] else max(1, int(stride / n_heads))
        head = torch.arange(n_heads)[:, None, None]
        is_local = i // block - j // block < c["blocksparse_num_local_blocks"]
        is_stripe = (j // block + head * step + 1) % stride == 0
        return causal & (is_local | is_stripe)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate [heads, T, D] by position, halves of a head against each other."""
        c, (_, n_tokens, head_dim) = self.config, x.shape
        factors, m = torch.ones(head_dim // 2), 1.0
        if c.get("rope_scaling"):
            scaling = c["rope_scaling"]
            original = scaling["original_max_position_embeddings"]
            which = "long" if n_tokens > original else "short"
            s = c["max_position_embeddings"] / original
            formula = math.sqrt(1 + math.log(s) / math.log(original))
            factors, m = torch.tensor(scaling[f"{which}_factor"]), scaling.get(f"{which}_mscale", formula)
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        angles = torch.arange(n_tokens)[:, None] / (factors * c["rope_embedding_base"] ** exponents)
        cos, sin = (m * f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def mlp(self, h: Tensor, name: str) -> Tensor:
        u, limit = self.product(h, f"{name}.up_proj"), self.config["gegelu_limit"]
        gelu, plain = u[:, 0::2], u[:, 1::2]
        if limit is not None:
            gelu = gelu.clamp(max=limit)
            plain = plain.clamp(-limit, limit)
        return self.product(gelu * torch.sigmoid(1.702 * gelu) * (plain + 1), f"{name}.down_proj")
