"""Products with a constant operand, however they are written: the bound is the exact norm of the map."""

from __future__ import annotations

import pytest
import torch
from flat import Flat, Function, bounded, norm_of, steepest
from samples import wave

from lipaudit.certification.network_bound import compose
from lipaudit.domains.einsum import einsum_labels
from lipaudit.domains.lipschitz.contraction import matrix_norm
from lipaudit.errors import NotLipschitz, UnsupportedOp

E = torch.einsum
SHAPE = (2, 3, 4)
MAPS: dict[str, Function] = {
    "matrix behind": lambda x: x @ wave(x, 4, 5),
    "matrix in front": lambda x: wave(x, 5, 3) @ x,
    "vector behind": lambda x: x @ wave(x, 4),
    "vector in front": lambda x: wave(x, 3) @ x,
    "a matrix for each": lambda x: wave(x, 2, 5, 3) @ x,
    "more matrices than inputs": lambda x: wave(x, 3, 1, 5, 3) @ x[:, None],
    "matrices behind a vector": lambda x: x[:, 0, 0] @ wave(x, 2, 4, 3).flatten(0, 1)[:4],
    "a matrix for each of one image": lambda x: x[:, :1] @ wave(x, 6, 4, 3),
    "sum of everything": lambda x: E("bcij->b", x)[:, None],
    "transposed": lambda x: E("bcij->bjci", x),
    "no output named": lambda x: E("bcij,ok", x[:, :, :1], wave(x, 2, 2)),
    "kept axis": lambda x: E("bcij,cik->bcjk", x, wave(x, 2, 3, 2)),
    "kept axis, nothing summed": lambda x: E("bcij,cj->bcij", x, wave(x, 2, 4)),
    "all axes summed": lambda x: E("bcij,cijk->bk", x, wave(x, 2, 3, 4, 5)),
    "constant in front": lambda x: E("ko,b...o->b...k", wave(x, 6, 4), x),
    "dots in both": lambda x: E("...ij,...jk->...ik", x, wave(x, 2, 4, 2)),
    "input summed over an axis of its own": lambda x: E("bcij,jk->bck", x, wave(x, 4, 3)),
    "axis of one against a longer one": lambda x: E("bcij,ciq->bciq", x[:, :, :1], wave(x, 2, 3, 4)),
    "tensordot": lambda x: torch.tensordot(x, wave(x, 4, 3, 5), ([3, 2], [0, 1])),
    "tensordot of the constant": lambda x: torch.tensordot(wave(x, 5, 3), x, ([1], [2])).movedim(1, 0),
    "bmm": lambda x: torch.bmm(wave(x, 2, 5, 3).repeat(len(x), 1, 1), x.flatten(0, 1)).view(len(x), -1),
    "scaled addmm": lambda x: torch.addmm(wave(x, 5), x.flatten(1), wave(x, 24, 5), beta=3, alpha=-2),
    "many small matrices": lambda x: E("bcij,cijkl->bcijkl", x, wave(x, 2, 3, 4, 2, 2)),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_bound_is_the_norm_of_the_map(name: str) -> None:
    exact = norm_of(MAPS[name], SHAPE)
    assert exact <= bounded(MAPS[name], SHAPE).value <= exact * (1 + 1e-6)


def test_a_constant_axis_that_is_summed_away_costs_at_most_its_root() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return E("bcij,jkl->bcik", x, wave(x, 4, 3, 5))

    assert norm_of(function, SHAPE) <= bounded(function, SHAPE).value


def test_more_matrices_than_are_bounded_one_by_one() -> None:
    matrices = torch.randn(200, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    exact = float(torch.linalg.svdvals(matrices).max())
    assert exact <= float(matrix_norm(matrices)) <= exact * (1 + 1e-8)


def test_the_shift_of_a_product_may_depend_on_the_input() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)
        return torch.addmm(torch.relu(flat[:, :1]), flat, wave(x, 24, 5), beta=2, alpha=0.5)

    assert steepest(function, SHAPE) <= bounded(function, SHAPE).value


@pytest.mark.parametrize(
    "function",
    [
        lambda x: E("bcii->bci", x[..., :3]),
        lambda x: E("bcij,jj->bci", x, wave(x, 4, 4)),
        lambda x: E("bcij,jk,kl->bcil", x, wave(x, 4, 3), wave(x, 3, 2)),
        lambda x: torch.baddbmm(x[:, 0], x[:, 0], x[:, 1].mT @ x[:, 0]),
    ],
)
def test_what_the_rules_do_not_read_is_refused(function: Function) -> None:
    with pytest.raises((UnsupportedOp, NotLipschitz)):
        compose(Flat(function).eval(), SHAPE)


@pytest.mark.parametrize(
    "function",
    [lambda x: x @ x.mT, lambda x: E("bcij,bckj->bcik", x, x), lambda x: torch.bmm(x[:, 0], x[:, 1].mT)],
)
def test_products_of_activations_need_a_domain(function: Function) -> None:
    with pytest.raises(NotLipschitz, match="give the range of the network input"):
        bounded(function, SHAPE)
    assert steepest(lambda x: function(x.clamp(0, 1)), SHAPE) <= bounded(function, SHAPE, domain=(0.0, 1.0)).value


def test_labels_of_an_einsum() -> None:
    assert einsum_labels("a...b, bc", [(2, 3, 4, 5), (5, 6)])[2] == [("dots", 2), ("dots", 1), "a", "c"]
    assert einsum_labels("ij,j->i", [(2, 3), (3,)]) == (["i", "j"], ["j"], ["i"])
