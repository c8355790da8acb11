"""The router against its definition token by token, ties and edges included; the experts against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from phlite import ops
from phlite.errors import ShapeError
from phlite.gguf import GGMLType
from phlite.ops.reference import moe as reference
from phlite.ops.reference.linear import layer_norm

EPS = 0.01
NORM_EPS = 1e-5
ISAS = ops.supported_isas()


@pytest.fixture(autouse=True)
def _best_isa_again() -> Iterator[None]:
    yield
    ops.select_isa(ISAS[0])


def assert_as_defined(scores: np.ndarray, jitter_eps: float = EPS) -> None:
    experts, weights = ops.route(scores, jitter_eps)
    expected_experts, expected_weights = reference.route(scores, jitter_eps)
    np.testing.assert_array_equal(experts, expected_experts)
    np.testing.assert_allclose(weights, expected_weights, rtol=2**-23)  # float32 of a double: half a place


def near_scores(n_rows: int, n_experts: int, seed: int) -> np.ndarray:
    """Scores so close that in most rows several experts share a weight, of both signs."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(0, 3, (n_rows, 1))
    return (centre * (1 + rng.normal(0, 0.02, (n_rows, n_experts)))).astype(np.float32)


@pytest.mark.parametrize("n_experts", [2, 3, 16, 61, 256])
def test_routes_of_any_scores_are_as_defined(n_experts: int) -> None:
    rng = np.random.default_rng(n_experts)
    assert_as_defined(rng.normal(0, 1, (300, n_experts)).astype(np.float32))
    assert_as_defined(near_scores(300, n_experts, seed=n_experts))


@pytest.mark.parametrize("jitter_eps", [1e-6, 0.001, 0.1, 0.5])
def test_the_width_of_sharing_is_the_callers(jitter_eps: float) -> None:
    assert_as_defined(near_scores(300, 16, seed=7), jitter_eps)


def test_exact_ties_go_to_the_lowest_index() -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(-2, 3, (500, 16)).astype(np.float32)  # five values on sixteen experts: ties everywhere
    assert_as_defined(scores)
    experts, _ = ops.route(np.float32([[1, 5, 5, 5], [5, 1, 2, 5], [-1, -1, -1, -1]]), EPS)
    np.testing.assert_array_equal(experts, [[1, 2], [0, 3], [0, 1]])


def test_tied_experts_share_the_first_weight_and_those_left_share_the_second() -> None:
    _, weights = ops.route(np.float32([[4, 4, 4, 0]]), EPS)
    np.testing.assert_array_equal(weights, np.float32([[1 / 3, 1 / 2]]))


def test_weights_of_clear_choices_are_one_and_not_renormalised() -> None:
    _, weights = ops.route(np.float32([[9, 1, 5, 3]]), EPS)
    np.testing.assert_array_equal(weights, [[1, 1]])


def test_all_zero_scores_are_shared_by_all() -> None:
    experts, weights = ops.route(np.zeros((1, 4), np.float32), EPS)
    np.testing.assert_array_equal(experts, [[0, 1]])
    np.testing.assert_array_equal(weights, np.float32([[1 / 4, 1 / 3]]))


def test_closeness_is_measured_by_the_larger_of_size_and_best() -> None:
    # |-50| is larger than the best: (1 + 50) / 50 = 1.02 is far; (1 - 0.999) / 1 is near.
    _, weights = ops.route(np.float32([[1.0, 0.999, -50.0]]), EPS)
    np.testing.assert_allclose(weights[0, 0], 1 / (1 + np.exp(np.float64(np.float32(0.999)) - 1)), rtol=2**-23)
    # All negative: sizes count, not the best. (-1 + 1.03) / 1.03 = 0.029 is far with 0.02 and near with 0.03.
    assert ops.route(np.float32([[-1.0, -1.03]]), 0.010)[1][0, 0] == 1
    assert ops.route(np.float32([[-1.0, -1.03]]), 0.015)[1][0, 0] < 1


def test_scores_on_the_edge_stay_in_as_in_float32() -> None:
    best = np.float32(1)
    edge = np.float32(2 * EPS)
    near = best - edge * np.array([0.9999, 1.0001], np.float32)
    weights = [ops.route(np.array([[best, score]], np.float32), EPS)[1][0, 0] for score in near]
    assert weights[0] < 1
    assert weights[1] == 1
    every = np.float32([[1, x] for x in np.linspace(0.979, 0.981, 2000, dtype=np.float32)])
    assert_as_defined(every)


def test_a_score_that_is_no_number_gives_no_number_and_stays_in_range() -> None:
    scores = np.random.default_rng(1).normal(0, 1, (16, 16)).astype(np.float32)
    scores[np.arange(16), np.arange(16)] = np.nan
    experts, weights = ops.route(scores, EPS)
    assert (experts >= 0).all()
    assert (experts < 16).all()
    assert np.isnan(weights).any(axis=1).all()


@pytest.mark.parametrize(
    "scores",
    [
        np.zeros((2, 1), np.float32),
        np.zeros((2, 257), np.float32),
        np.zeros((2, 4), np.float64),
        np.zeros((4, 2), np.float32).T,
        np.zeros(4, np.float32),
    ],
)
def test_scores_of_another_kind_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="route"):
        ops.route(scores, EPS)


@dataclass
class Layer:
    """One layer's matrices in float32, [X, E], X of [2F, E] and X of [E, F], and its norm."""

    router: np.ndarray
    gate_up: np.ndarray
    down: np.ndarray
    norm_weight: np.ndarray
    norm_bias: np.ndarray

    @classmethod
    def random(cls, n_experts: int, n_hidden: int, n_inner: int, seed: int = 0) -> Layer:
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

        return cls(
            draw(n_experts, n_hidden),
            draw(n_experts, 2 * n_inner, n_hidden),
            draw(n_experts, n_hidden, n_inner),
            rng.uniform(0.5, 1.5, n_hidden).astype(np.float32),
            rng.normal(0, 0.5, n_hidden).astype(np.float32),
        )

    def packed(self, pool: ops.ThreadPool) -> ops.Experts:
        def pack(matrix: np.ndarray, activation: ops.Activation = "none") -> ops.PackedMatrix:
            part = (np.ascontiguousarray(matrix).view(np.uint8).reshape(-1), GGMLType.F32, len(matrix))
            return ops.pack_matrix([part], matrix.shape[1], activation=activation, pool=pool)

        return ops.Experts(pack(self.router), [pack(m, "swiglu") for m in self.gate_up], [pack(m) for m in self.down])

    def mix(self, x: np.ndarray, n_threads: int = 2) -> np.ndarray:
        pool = ops.ThreadPool(n_threads)
        return ops.mix(
            x,
            self.packed(pool),
            norm_weight=self.norm_weight,
            norm_bias=self.norm_bias,
            eps=NORM_EPS,
            jitter_eps=EPS,
            residual=x,
            pool=pool,
        )


def rows(n: int, n_hidden: int, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, n_hidden), np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n_rows", [1, 2, 5, 40])
@pytest.mark.parametrize(("n_experts", "n_hidden", "n_inner"), [(2, 48, 20), (16, 96, 64), (5, 33, 7)])
def test_answers_of_two_experts_are_weighted_and_added(
    n_experts: int, n_hidden: int, n_inner: int, n_rows: int, isa: str
) -> None:
    ops.select_isa(isa)
    layer, x = Layer.random(n_experts, n_hidden, n_inner), rows(n_rows, n_hidden)
    h = layer_norm(x, layer.norm_weight, layer.norm_bias, NORM_EPS)
    chosen, weights = reference.route((h @ layer.router.T.astype(np.float64)).astype(np.float32), EPS)
    expected = x + reference.mix(h, chosen, weights, layer.gate_up, layer.down)
    # Three chains of multiply-adds and a norm: some hundred roundings of 2^-24 of terms near 1, most of which cancel.
    np.testing.assert_allclose(layer.mix(x), expected, atol=200 * 2**-24)


def test_weights_shared_between_near_experts_multiply_their_answers() -> None:
    layer, x = Layer.random(4, 32, 16), rows(3, 32)
    layer.router[:] = 0  # all scores are zero: experts 0 and 1 with weights 1/4 and 1/3
    h = layer_norm(x, layer.norm_weight, layer.norm_bias, NORM_EPS)
    chosen, weights = np.tile(np.int32([0, 1]), (3, 1)), np.tile([1 / 4, 1 / 3], (3, 1))
    expected = x + reference.mix(h, chosen, weights, layer.gate_up, layer.down)
    np.testing.assert_allclose(layer.mix(x), expected, atol=200 * 2**-24)


def test_a_token_has_the_same_bits_beside_any_others() -> None:
    layer, x = Layer.random(8, 64, 48), rows(50, 64)
    whole = layer.mix(x)
    for first, last in [(0, 1), (49, 50), (3, 5), (7, 20), (1, 50)]:
        np.testing.assert_array_equal(layer.mix(x[first:last].copy()), whole[first:last])
    order = np.random.default_rng(2).permutation(50)
    np.testing.assert_array_equal(layer.mix(x[order]), whole[order])


def test_threads_and_instruction_sets_do_not_change_a_bit() -> None:
    layer, x = Layer.random(8, 64, 48), rows(30, 64)
    expected, alone = layer.mix(x, 1), layer.mix(x[:1].copy(), 1)
    for isa in ISAS:
        ops.select_isa(isa)
        for n_threads in (1, 2, 7):
            np.testing.assert_array_equal(layer.mix(x, n_threads), expected)
            np.testing.assert_array_equal(layer.mix(x[:1].copy(), n_threads), alone)


def test_experts_that_are_not_chosen_are_not_read() -> None:
    layer, x = Layer.random(8, 64, 48), rows(1, 64)
    h = layer_norm(x, layer.norm_weight, layer.norm_bias, NORM_EPS)
    chosen, _ = reference.route((h @ layer.router.T.astype(np.float64)).astype(np.float32), EPS)
    expected = layer.mix(x)
    for expert in set(range(8)) - set(chosen[0].tolist()):
        layer.gate_up[expert] = layer.down[expert] = np.nan  # even times zero it would show
    np.testing.assert_array_equal(layer.mix(x), expected)


def test_no_rows_give_no_rows() -> None:
    assert Layer.random(2, 32, 16).mix(rows(0, 32)).shape == (0, 32)


def test_matrices_that_do_not_fit_together_are_refused() -> None:
    pool = ops.ThreadPool(1)
    good, other = Layer.random(3, 32, 16), Layer.random(3, 32, 20)
    with pytest.raises(ShapeError, match="3 experts"):
        Layer(good.router[:2], good.gate_up, good.down, good.norm_weight, good.norm_bias).packed(pool)
    with pytest.raises(ShapeError, match="down matrix of expert 0"):
        Layer(good.router, good.gate_up, other.down, good.norm_weight, good.norm_bias).packed(pool)
    with pytest.raises(ShapeError, match="1 experts"):
        Layer(good.router[:1], good.gate_up[:1], good.down[:1], good.norm_weight, good.norm_bias).packed(pool)


def test_arrays_that_do_not_fit_are_refused() -> None:
    layer = Layer.random(2, 32, 16)
    with pytest.raises(ShapeError, match="mix: x has shape"):
        layer.mix(rows(2, 33))
    with pytest.raises(ShapeError, match="float64"):
        layer.mix(rows(2, 32).astype(np.float64))
