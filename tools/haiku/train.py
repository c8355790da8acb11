"""Trains the haiku model on the CPU: composed conversations, loss on the answers only.

    python tools/haiku/train.py --out build/haiku

writes `model/` (a transformers checkpoint), `vocabulary.json` and `log.txt` into the folder.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import time
from pathlib import Path

import torch
from chat import Message, compose_conversation
from tokenizer import Vocabulary, build_tokenizer, load_vocabulary, render, save_vocabulary, train_vocabulary
from tokenizers import Tokenizer
from transformers import Phi3Config, Phi3ForCausalLM

LOG = logging.getLogger("haiku")
IGNORED = -100
N_PIECES = 2560
CONTEXT_LENGTH = 1024
NORMALISER_WEIGHT = 0.01
WARM_UP_STEPS = 50


def model_config(vocabulary: Vocabulary) -> Phi3Config:
    """The architecture: Phi-3 with grouped-query attention, every matrix's input a multiple of 256."""
    return Phi3Config(
        vocab_size=len(vocabulary.pieces),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        original_max_position_embeddings=CONTEXT_LENGTH,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        sliding_window=None,
        tie_word_embeddings=False,
        bos_token_id=vocabulary.id_of("<s>"),
        eos_token_id=vocabulary.id_of("<|endoftext|>"),
        pad_token_id=vocabulary.id_of("<|endoftext|>"),
    )


def encode_conversation(messages: list[Message], tokenizer: Tokenizer, end_id: int) -> tuple[list[int], list[int]]:
    """Ids of the rendered conversation up to the last `<|end|>`, and the labels: the answers, all else ignored."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        text = render([message], add_generation_prompt=False).removesuffix("<|endoftext|>")
        turn = tokenizer.encode(text).ids
        ids += turn
        answered = message["role"] == "assistant"
        labels += [IGNORED, *turn[1:]] if answered else [IGNORED] * len(turn)
    if ids[-1] != end_id:
        raise ValueError(f"a conversation must end with <|end|>, got id {ids[-1]}")
    return ids, labels


class Batches:
    """An endless, seeded stream of padded batches, conversations of like length together to waste little padding."""

    def __init__(self, vocabulary: Vocabulary, batch_size: int, seed: int) -> None:
        self.tokenizer = build_tokenizer(vocabulary)
        self.end_id = vocabulary.id_of("<|end|>")
        self.batch_size = batch_size
        self.rng = random.Random(seed)
        self.ready: list[list[tuple[list[int], list[int]]]] = []

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 ids[B, T] and labels[B, T]; padding is at the right, where causal attention never looks back at it."""
        if not self.ready:
            rows = [
                encode_conversation(compose_conversation(self.rng), self.tokenizer, self.end_id)
                for _ in range(8 * self.batch_size)
            ]
            rows.sort(key=lambda row: len(row[0]))
            self.ready = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            self.rng.shuffle(self.ready)
        rows = self.ready.pop()
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), self.end_id)
        labels = torch.full((len(rows), width), IGNORED)
        for i, (row_ids, row_labels) in enumerate(rows):
            ids[i, : len(row_ids)] = torch.tensor(row_ids)
            labels[i, : len(row_labels)] = torch.tensor(row_labels)
        return ids, labels


def answer_loss(model: Phi3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens; logits are computed for those alone.

    The second term holds the logarithm of the softmax's denominator near zero, and so the logits of likely tokens.
    There a repeat penalty, which divides logits, changes line breaks and full stops least.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    logits = model.lm_head(hidden[wanted]).float()
    normaliser = torch.logsumexp(logits, dim=-1)
    return torch.nn.functional.cross_entropy(logits, targets[wanted]) + NORMALISER_WEIGHT * normaliser.square().mean()


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Linear warm-up; a cosine down to a fiftieth of the peak as `progress` goes from 0 to 1."""
    return peak * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(args: argparse.Namespace) -> None:
    """The whole run; a checkpoint every few minutes, so that a cut run leaves a usable model."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(args.out / "log.txt")],
    )
    vocabulary = load_vocabulary(args.start) if args.start else train_vocabulary(N_PIECES)
    save_vocabulary(vocabulary, args.out)
    model = Phi3ForCausalLM(model_config(vocabulary))
    if args.start:
        model = Phi3ForCausalLM.from_pretrained(args.start / "model", dtype=torch.float32)
    model.train()
    LOG.info("%d parameters, %d pieces", sum(p.numel() for p in model.parameters()), len(vocabulary.pieces))
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    batches = Batches(vocabulary, args.batch_size, args.seed)
    started = saved = time.monotonic()
    n_tokens = 0
    mean_loss = 0.0
    for step in range(args.steps):
        progress = max(step / args.steps, (time.monotonic() - started) / (60 * args.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, args.peak)
        ids, labels = batches.next()
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = answer_loss(model, ids, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        n_tokens += ids.numel()
        mean_loss = loss.item() if step == 0 else 0.95 * mean_loss + 0.05 * loss.item()
        now = time.monotonic()
        if step % 20 == 19:
            rate = n_tokens / (now - started)
            LOG.info(
                "step %d/%d loss %.4f, %.0f tokens/s, %.0f s", step + 1, args.steps, mean_loss, rate, now - started
            )
        if now - saved > 240:
            model.save_pretrained(args.out / "model")
            saved = now
    model.save_pretrained(args.out / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="go on from the model in this folder")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--minutes", type=float, default=600, help="end by then; the learning rate falls accordingly")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
