"""What an adapter computes: what the model with the adapter merged into its weights computes, per row, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import all_logits, random_checkpoint, tiny_config, write_gguf
from tiny_models.lora import merged, random_lora, write_gguf_lora, write_peft
from tiny_models.phi3small import random_phi3small_checkpoint, tiny_phi3small_config, write_phi3small_folder
from tiny_models.phimoe import random_phimoe_checkpoint, tiny_phimoe_config, write_phimoe_gguf

from phlite import ops
from phlite.checkpoint import load_checkpoint
from phlite.convert import convert_checkpoint
from phlite.engine import Engine, SamplingParams
from phlite.engine.adapters import AdapterUse
from phlite.errors import RequestError
from phlite.llm import LLM
from phlite.models.lora import load_adapter
from phlite.models.registry import build_checkpoint_model, load_model

ALL = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head")
CONFIG = tiny_config(num_key_value_heads=2)
RNG = np.random.default_rng(7)
IDS = RNG.integers(8, 512, 90).tolist()
GREEDY = {"temperature": 0.0, "repeat_penalty": 1.0, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def checkpoint():
    return random_checkpoint(CONFIG, seed=31)


@pytest.fixture
def load(tmp_path):
    """Write a checkpoint and load it with adapters."""

    def build(checkpoint, lora=None, **file):
        path = write_gguf(tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf", checkpoint, **file)
        return LLM.load(str(path), lora=lora, threads=2, kv_type="f32", n_ctx=512)

    return build


def logits_of(llm, lora=None, ids=IDS):
    return all_logits(llm.engine.model, ids, lora=llm.engine.adapters.chosen(lora))


def assert_close(got, expected):
    """Merging rounds W + BA to float32 once; the adapter's own sums are of at most 512 float32 terms."""
    assert (np.abs(got - expected).max(axis=-1) / np.linalg.norm(expected, axis=-1)).max() < 1e-5


@pytest.mark.parametrize("form", ["peft", "gguf"])
def test_an_adapter_gives_what_merged_weights_give(checkpoint, load, tmp_path, form):
    pairs = random_lora(checkpoint, ALL)
    write = {"peft": write_peft, "gguf": write_gguf_lora}[form]
    llm = load(
        checkpoint,
        write(tmp_path / "style.gguf", pairs, **({"r": 4, "lora_alpha": 6} if form == "peft" else {"alpha": 6.0})),
    )
    assert_close(logits_of(llm), logits_of(load(merged(checkpoint, (pairs, 6 / 4)))))


def test_the_bare_model_is_unchanged_beside_its_adapters(checkpoint, load, tmp_path):
    llm = load(checkpoint, write_peft(tmp_path / "style", random_lora(checkpoint, ALL)))
    bare = logits_of(load(checkpoint))
    np.testing.assert_array_equal(logits_of(llm, {}), bare)
    np.testing.assert_array_equal(logits_of(llm, {"style": 0.0}), bare)
    assert np.abs(logits_of(llm) - bare).max() > 1


def test_several_adapters_add_up_with_their_scales(checkpoint, load, tmp_path):
    """Of different ranks, and one of them on some modules only."""
    one, two = random_lora(checkpoint, ALL, seed=1), random_lora(checkpoint, ["o_proj", "down_proj"], rank=7, seed=2)
    folders = {str(write_peft(tmp_path / "b", one)): 0.5, str(write_peft(tmp_path / "a", two)): -0.25}
    llm = load(checkpoint, folders)
    assert_close(logits_of(llm), logits_of(load(merged(checkpoint, (one, 1.0), (two, -0.5)))))
    assert_close(logits_of(llm, {"a": 1.5}), logits_of(load(merged(checkpoint, (two, 3.0)))))


def test_split_names_change_their_rows_of_stacked_matrices(checkpoint, load, tmp_path):
    """q, v and up alone, on a model whose file has them fused."""
    split = random_checkpoint(CONFIG, split_qkv=True, split_gate_up=True, seed=31)
    pairs = random_lora(split, ["q_proj", "v_proj", "up_proj"])
    llm = load(split.fused(), write_peft(tmp_path / "style", pairs))
    assert_close(logits_of(llm), logits_of(load(merged(split, (pairs, 2.0)).fused())))


def test_a_fused_adapter_fits_a_file_with_split_matrices(load, tmp_path):
    split = random_checkpoint(CONFIG, split_qkv=True, split_gate_up=True, seed=31)
    pairs = random_lora(split.fused(), ["qkv_proj", "gate_up_proj"])
    llm = load(split, write_peft(tmp_path / "style", pairs))
    assert_close(logits_of(llm), logits_of(load(merged(split.fused(), (pairs, 2.0)))))


def test_the_rows_of_interleaved_heads_are_found(load, tmp_path):
    """The old llama files permute q and k; a Hugging Face adapter does not know that."""
    split = random_checkpoint(CONFIG, split_qkv=True, split_gate_up=True, seed=31)
    pairs = random_lora(split.fused(), ALL)
    llm = load(split, write_peft(tmp_path / "style", pairs), architecture="llama")
    assert_close(logits_of(llm), logits_of(load(merged(split.fused(), (pairs, 2.0)))))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_K"])
def test_the_base_may_be_quantised_and_the_adapter_stays_float(checkpoint, load, tmp_path, kind):
    """The products with W are the same bits; what is added is checked on one layer's float32 output."""
    quantised = random_checkpoint(CONFIG, lambda name: kind if "qkv" in name else "F32", seed=31)
    pairs = random_lora(quantised, ["down_proj"])
    llm = load(quantised, write_peft(tmp_path / "style", pairs))
    assert_close(logits_of(llm), logits_of(load(merged(quantised, (pairs, 2.0)))))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_the_adapters_own_format_is_exact(checkpoint, load, tmp_path, kind):
    import gguf

    pairs = random_lora(checkpoint, ["qkv_proj"], rank=8)
    of_a = gguf.GGMLQuantizationType[kind]
    rounded = {m: (gguf.quants.dequantize(gguf.quants.quantize(a, of_a), of_a), b) for m, (a, b) in pairs.items()}
    llm = load(checkpoint, write_gguf_lora(tmp_path / "style.gguf", pairs, kind=kind))
    assert_close(logits_of(llm), logits_of(load(merged(checkpoint, (rounded, 2.0)))))


def test_peft_options_of_the_scale(checkpoint, load, tmp_path):
    """rank-stabilised scale, and ranks and alphas of single modules."""
    pairs = random_lora(checkpoint, ["o_proj"], rank=4) | random_lora(checkpoint, ["down_proj"], rank=2)
    down = {module: pair for module, pair in pairs.items() if "down_proj" in module}
    o = {module: pair for module, pair in pairs.items() if "o_proj" in module}
    folder = write_peft(
        tmp_path / "style",
        pairs,
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"down_proj": 2},
        alpha_pattern={"model.layers.1.mlp.down_proj": 5},
    )
    first, second = ({m: p for m, p in down.items() if f"layers.{i}." in m} for i in (0, 1))
    expected = merged(checkpoint, (o, 6 / 4**0.5), (first, 6 / 2**0.5), (second, 5 / 2**0.5))
    assert_close(logits_of(load(checkpoint, folder)), logits_of(load(expected)))


def test_an_alpha_of_0_in_a_gguf_file_means_the_scale_alone(checkpoint, load, tmp_path):
    pairs = random_lora(checkpoint, ["o_proj"])
    llm = load(checkpoint, write_gguf_lora(tmp_path / "style.gguf", pairs, alpha=0.0))
    assert_close(logits_of(llm), logits_of(load(merged(checkpoint, (pairs, 1.0)))))


@pytest.fixture
def two_adapters(checkpoint, load, tmp_path):
    """A model with adapters "one" and "two" that are used only where a request names them."""
    one, two = random_lora(checkpoint, ALL, seed=1), random_lora(checkpoint, ["qkv_proj", "down_proj"], seed=2)
    llm = load(checkpoint)
    llm.add_lora(write_peft(tmp_path / "one", one), scale=0.0)
    llm.add_lora(write_gguf_lora(tmp_path / "two.gguf", two), scale=0.0)
    return llm


CHOICES = [None, {"one": 1.0}, {"two": 0.5}, {"two": 1.0, "one": -0.5}, {}, {"one": 0.25}]


def test_requests_of_one_batch_have_their_own_adapters(two_adapters):
    prompts = [IDS[i : i + 5 + 3 * i] for i in range(len(CHOICES))]
    params = [SamplingParams(**GREEDY, lora=lora, logprobs=3) for lora in CHOICES]
    alone = [two_adapters.generate(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
    streams = [two_adapters.stream(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
    for stream, expected in zip(streams, alone, strict=True):
        assert list(stream)
        assert stream.completion.token_ids == expected.token_ids
        assert stream.completion.logprobs == expected.logprobs  # the same bits
    assert len({one.token_ids for one in two_adapters_answers(two_adapters)}) == 5  # None and {} are the bare model


def two_adapters_answers(llm):
    return [llm.generate(IDS[:20], SamplingParams(**GREEDY, lora=lora)) for lora in CHOICES]


@pytest.mark.parametrize(("threads", "max_batch_tokens"), [(1, 512), (3, 512), (2, 17)])
def test_adapters_give_the_same_bits_for_any_threads_and_chunks(
    checkpoint, tmp_path, two_adapters, threads, max_batch_tokens
):
    path = write_gguf(tmp_path / "base.gguf", checkpoint)
    llm = LLM.load(str(path), threads=threads, kv_type="f32", n_ctx=512)
    llm.engine.scheduler.max_batch_tokens = max_batch_tokens
    llm.add_lora(tmp_path / "one", scale=0.0)
    llm.add_lora(tmp_path / "two.gguf", scale=0.0)
    params = SamplingParams(**GREEDY, lora={"one": 1.0, "two": 0.5}, logprobs=2)
    got, expected = llm.generate(IDS, params), two_adapters.generate(IDS, params)
    assert (got.token_ids, got.logprobs) == (expected.token_ids, expected.logprobs)


def test_perplexity_is_that_of_the_merged_model(checkpoint, load, tmp_path):
    pairs = random_lora(checkpoint, ALL)
    llm, expected = load(checkpoint, write_peft(tmp_path / "style", pairs)), load(merged(checkpoint, (pairs, 2.0)))
    assert llm.perplexity(IDS, n_ctx=32).value == pytest.approx(expected.perplexity(IDS, n_ctx=32).value, rel=1e-5)
    assert llm.perplexity(IDS, n_ctx=32, lora={}).value == load(checkpoint).perplexity(IDS, n_ctx=32).value


def test_an_adapter_can_be_added_and_removed_while_the_model_runs(checkpoint, load, tmp_path):
    llm = load(checkpoint)
    folder = write_peft(tmp_path / "style", random_lora(checkpoint, ALL))
    params = SamplingParams(**GREEDY)
    bare = llm.generate(IDS[:9], params)
    assert llm.add_lora(folder, name="mine") == "mine"
    styled = llm.generate(IDS[:9], params)
    stream = llm.stream(IDS[:9], params)
    pieces = [next(stream)]
    llm.remove_lora("mine")
    pieces += stream
    assert stream.completion.token_ids == styled.token_ids != bare.token_ids
    assert llm.generate(IDS[:9], params).token_ids == bare.token_ids
    with pytest.raises(RequestError, match="no adapter 'mine' is loaded; loaded: none"):
        llm.remove_lora("mine")


def test_a_name_is_given_once(checkpoint, load, tmp_path):
    folder = write_peft(tmp_path / "style", random_lora(checkpoint, ["o_proj"]))
    llm = load(checkpoint, folder)
    with pytest.raises(RequestError, match="an adapter named 'style' is loaded already"):
        llm.add_lora(folder)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"other": 1.0}, "no adapter 'other' is loaded; loaded: one, two"),
        ({"one": float("nan")}, "expected a number"),
        ({"one": "big"}, "expected a number"),
        (["one"], "expected a mapping of adapter name to scale"),
    ],
)
def test_a_wrong_choice_of_adapters_is_refused(two_adapters, lora, message):
    with pytest.raises(RequestError, match=message):
        two_adapters.generate("x", SamplingParams(lora=lora))


def test_a_sequence_that_was_put_back_goes_on_with_its_adapter(checkpoint, two_adapters):
    """With too few cache blocks for all, the youngest gives its own back and is encoded again."""
    params = SamplingParams(**{**GREEDY, "max_tokens": 60}, lora={"one": 1.0})
    expected = two_adapters.engine.generate([IDS[:60], IDS[30:89]], params)
    small = Engine(two_adapters.engine.model, n_ctx=192, cache_tokens=192, kv_type="f32")
    small.adapters = two_adapters.engine.adapters
    got = small.generate([IDS[:60], IDS[30:89]], params)
    assert [one.output_ids for one in got] == [one.output_ids for one in expected]


@pytest.mark.parametrize("lora", [{"one": 1.0}, {"two": 1.0}])
def test_guessed_tokens_go_through_the_adapter_too(two_adapters, monkeypatch, lora):
    """Prompt lookup checks several tokens in one pass; an answer of few different tokens makes it guess."""
    model, n_rows = two_adapters.engine.model, []
    forward = model.forward

    def noted(batch, cache):
        n_rows.append(len(batch.logit_rows))
        return forward(batch, cache)

    monkeypatch.setattr(model, "forward", noted)
    prompt = IDS[:6] * 8
    changes = {"max_tokens": 60, "logit_bias": dict.fromkeys(prompt, 40.0)}
    with_lookup, without = (
        two_adapters.generate(prompt, SamplingParams(**{**GREEDY, **changes}, lora=lora, prompt_lookup_num_tokens=n))
        for n in (15, 0)
    )
    assert with_lookup.token_ids == without.token_ids
    assert max(n_rows) > 1


def test_beams_go_through_the_adapter(checkpoint, load, tmp_path):
    pairs = random_lora(checkpoint, ALL, seed=9)
    llm = load(checkpoint)
    llm.add_lora(write_peft(tmp_path / "style", pairs), scale=0.0)
    search = replace(SamplingParams.beam_search(3, max_tokens=20), ignore_eos=True)
    bare, styled = (llm.generate(IDS[:15], replace(search, lora=lora)) for lora in (None, {"style": 1.0}))
    expected = load(merged(checkpoint, (pairs, 2.0))).generate(IDS[:15], search)
    assert styled.token_ids == expected.token_ids != bare.token_ids


def test_attention_of_a_mixture_of_experts_takes_adapters(tmp_path):
    checkpoint = random_phimoe_checkpoint(tiny_phimoe_config(), seed=5)
    pairs = random_lora(checkpoint, ["q_proj", "v_proj", "o_proj", "lm_head"])
    folder = write_peft(tmp_path / "style", pairs)
    llm, expected = (
        LLM.load(str(write_phimoe_gguf(tmp_path / f"{i}.gguf", one)), kv_type="f32", n_ctx=128, lora=lora)
        for i, (one, lora) in enumerate([(checkpoint, folder), (merged(checkpoint, (pairs, 2.0)), None)])
    )
    assert_close(logits_of(llm, ids=IDS[:40]), logits_of(expected, ids=IDS[:40]))


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_phi_3_small_takes_adapters(tmp_path, form):
    """Its checkpoint's rows of q, k and v lie in another order than the product's, and than a GGUF file's."""
    checkpoint = random_phi3small_checkpoint(tiny_phi3small_config(), seed=6)
    pairs = random_lora(checkpoint, ["query_key_value", "dense", "up_proj", "down_proj"])
    folder = write_peft(tmp_path / "style", pairs)
    pool = ops.ThreadPool(2)

    def build(one, name):
        path = write_phi3small_folder(tmp_path / name, one)
        with load_checkpoint(path) as opened:
            if form == "folder":
                return build_checkpoint_model(opened, pool=pool)
            convert_checkpoint(opened, tmp_path / f"{name}.gguf")
        return load_model(tmp_path / f"{name}.gguf", pool=pool)

    model, ids = build(checkpoint, "base"), [token_id % 384 for token_id in IDS[:70]]
    adapter = load_adapter(folder, model, name="style")
    got = all_logits(model, ids, lora=[AdapterUse(adapter, 1.0)])
    expected = all_logits(build(merged(checkpoint, (pairs, 2.0)), "merged"), ids)
    assert_close(got[:, np.isfinite(expected[0])], expected[:, np.isfinite(expected[0])])
