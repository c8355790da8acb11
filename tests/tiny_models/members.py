"""The family's configs with few and small layers: head sizes, ratios, rope and window as in the real ones."""

from __future__ import annotations

from typing import Any

from tiny_models.checkpoint import tiny_config

# Phi-3.5-mini-instruct's published lists, 48 pairs of rotary dimensions.
LONG_FACTOR = [
    *(1.08, 1.11, 1.14, 1.34, 1.5899999, 1.6, 1.62, 2.6200001, 3.23, 3.23, 4.79, 7.4, 7.7000003, 9.09, 12.2, 17.67),
    *(24.460001, 28.570002, 30.420002, 30.840002, 32.590004, 32.930004, 42.320004, 44.960003, 50.340004, 50.450005),
    *(57.550003, 57.930004, 58.210003, 60.140003, 62.610004, 62.620003, 62.710003, 63.140003, 63.140003, 63.770004),
    *(63.930004, 63.960003, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84),
]
SHORT_FACTOR = [
    *(1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.0699999, 1.0999999, 1.1099999, 1.1599998, 1.1599998),
    *(1.1699998, 1.2899998, 1.3399998, 1.6799998, 1.7899998, 1.8199998, 1.8499998, 1.8799998, 1.9099997, 1.9399997),
    *(1.9899997, *([2.0199997] * 6), *([2.0299997] * 9), 2.0799997, 2.0899997, 2.1899996, 2.2199996, 2.5899994),
    *(2.7299995, 2.7499995, 2.8399994),
]
LONGROPE = {"type": "longrope", "long_factor": LONG_FACTOR, "short_factor": SHORT_FACTOR}

MEMBERS: dict[str, dict[str, Any]] = {
    # 96-element heads, every head its own keys, window 2047
    "mini-4k": tiny_config(hidden_size=384, sliding_window=2047, vocab_size=1003),
    # the same with LongRoPE; the window is wider than the context
    "mini-128k": tiny_config(
        hidden_size=384, max_position_embeddings=131072, sliding_window=262144, rope_scaling=LONGROPE
    ),
    # 128-element heads, four queries share a key
    "medium-4k": tiny_config(hidden_size=512, num_key_value_heads=1, sliding_window=2047),
    # base 250000, no window, no scaling
    "phi-4": tiny_config(
        hidden_size=512,
        num_key_value_heads=2,
        rope_theta=250000.0,
        max_position_embeddings=16384,
        original_max_position_embeddings=16384,
        sliding_window=None,
    ),
    # three queries share a key, 96 of 128 dimensions rotate, the output matrix is the embedding's
    "phi-4-mini": tiny_config(
        hidden_size=384,
        num_attention_heads=3,
        num_key_value_heads=1,
        partial_rotary_factor=0.75,
        tie_word_embeddings=True,
        max_position_embeddings=131072,
        sliding_window=262144,
        rope_scaling=LONGROPE,
        vocab_size=1024,
    ),
}
