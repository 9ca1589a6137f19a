"""Symbols taken together: what that claims against what the network does, and against more digits."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import mpmath
import pytest
import torch
from balls import inside, lowest, operands
from quick import mostly_slow
from torch import nn

from lipaudit import zoo
from lipaudit.certification.local_proof import Search, proof
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.domains.graph import evaluate
from lipaudit.domains.zonotope import logits as zonotope
from lipaudit.domains.zonotope.affine_form import Form, Shared
from lipaudit.domains.zonotope.backward import Banded, ancestors
from lipaudit.domains.zonotope.quadratic_constraints import Sectors, _Block, _left

ROOM = 4000


class Residual(nn.Module):
    """Two branches that meet, of which one has fewer symbols; then a GELU, of which little is known."""

    def __init__(self, curved: bool) -> None:
        super().__init__()
        self.first, self.left = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.last, self.curved = nn.Linear(48, 3), nn.GELU() if curved else nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        return self.last(self.curved(x + torch.relu(self.left(x))).flatten(1))


Made = Callable[[int], tuple[Composition, torch.Tensor]]


@functools.cache
def tiny(seed: int, curved: bool = False) -> tuple[Composition, torch.Tensor]:
    torch.manual_seed(seed)
    network = Residual(curved).double().eval().requires_grad_(False)
    for layer in (network.first, network.left, network.last):
        layer.weight.mul_(2.0)
    return compose(network, (1, 4, 4), global_method="product"), torch.rand(1, 4, 4, dtype=torch.float64)


@functools.cache
def narrow(seed: int) -> tuple[Composition, torch.Tensor]:
    """A network whose first layer sees few directions of the input: Note [Narrow inputs]."""
    torch.manual_seed(seed)
    layers = (nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    network = nn.Sequential(*layers).double().eval().requires_grad_(False)
    x = torch.rand(1, 4, 4, dtype=torch.float64)
    layers[1].bias.copy_(0.02 * torch.randn(8) - layers[1].weight @ x.flatten())  # many signs are open
    return compose(network, (1, 4, 4), global_method="product"), x


def whole(block: _Block) -> tuple[torch.Tensor, torch.Tensor]:
    """Y and Z of a layer, all of their columns."""
    own = torch.diag(block.own)
    return torch.cat([block.aside, own], 1), torch.cat([block.z, torch.zeros_like(own)], 1)


def together(composition: Composition, x: torch.Tensor, radius: float) -> tuple[Form, Sectors]:
    logits = zonotope.logits_over(composition.ledger, x, radius, room_for=ROOM, backwards=False, together=True)
    assert logits.sectors is not None
    return logits, logits.sectors


@pytest.mark.parametrize("made", [tiny, narrow])
@pytest.mark.parametrize("seed", mostly_slow(range(4), 2))
@pytest.mark.parametrize("radius", [0.05, 0.3, 2.0])
def test_no_input_of_the_ball_breaks_a_constraint(seed: int, radius: float, made: Made) -> None:
    composition, x = made(seed)
    logits, sectors = together(composition, x, radius)
    assert (sectors.basis is None) == (made is tiny)
    steps = sorted((step for step in ancestors(logits.step) if isinstance(step, Banded)), key=lambda step: step.number)
    nearest, count = 0.0, len(sectors.shift)
    assert count == len(logits.rows) - logits.inputs - 1 > 0
    g = sectors.anchored(logits, torch.arange(3)).rows
    reach = sectors.reach(g)
    for move in inside(tuple(x.shape), 200, torch.Generator().manual_seed(seed)):
        found = [move.flatten() if sectors.basis is None else sectors.basis.mT @ move.flatten()]
        for z, step in zip(operands(composition, x + radius * move).values(), steps, strict=True):
            z, slope, shift, error = (v.flatten() for v in (z, step.band.slope, step.band.shift, step.band.error))
            places = error > 0
            found.append(((z.clamp_min(0) - slope * z - shift) / error)[places])
        h = torch.cat(found)
        h[sectors.inputs :] += sectors.shift
        assert bool((h.abs() <= sectors.far + 1e-9).all())
        done = 0
        for block in sectors.blocks:
            y, z = whole(block)
            beyond = sectors.beyond[done : done + len(y)]
            left, right = (y @ h[: block.unknowns]).square(), (z @ h[: block.unknowns]).square() + beyond
            assert bool((left <= right + 1e-12 * (1 + right)).all())
            done += len(block.own)
        assert bool(((g @ h).abs() <= reach).all())
        nearest = max(nearest, float(((g @ h).abs() / reach).max()))
    assert nearest > 0.02  # or the test sees nothing


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("seed", mostly_slow(range(6), 2))
def test_no_difference_falls_below_its_bound(seed: int, curved: bool) -> None:
    composition, x = tiny(seed, curved)
    label = int(evaluate(composition.graph, x).argmax())
    for radius in (1e-6, 0.03, 0.3, 3.0):
        logits, sectors = together(composition, x, radius)
        bounds = zonotope.margins_together(logits, label, 30)
        others = [other for other in range(3) if other != label]
        for bound, other in zip(bounds.tolist(), others, strict=True):
            c = torch.zeros(3, dtype=torch.float64)
            c[label], c[other] = 1.0, -1.0
            least = lowest(lambda x: evaluate(composition.graph, x[0])[None], x, radius, c)
            assert bound <= float(least)
        centre = evaluate(composition.graph, x)
        if radius == 1e-6:  # and as near as can be
            assert torch.allclose(bounds, centre[label] - centre[others], atol=1e-4)
        assert bool((sectors.multipliers > 0).all())


@pytest.mark.parametrize("seed", mostly_slow(range(3), 1))
@pytest.mark.parametrize("share", [0.0, 0.9, 0.999999, 1 - 1e-12])
def test_reach_is_above_what_more_digits_say(seed: int, share: float) -> None:
    """Against the same quadratic problem with 60 digits, up to multipliers that leave next to nothing of B."""
    composition, x = tiny(seed)
    _, sectors = together(composition, x, 0.1)
    unknowns = sectors.inputs + len(sectors.shift)
    if share:  # as close to where B is singular as that, by the multipliers of the last layer
        last, low, high = len(sectors.blocks[-1].own), 1.0, 1e9
        begun = sectors.multipliers.clone()
        tail = begun.clone()
        tail[-last:] = 0.0
        for _ in range(60):
            middle = (low * high) ** 0.5
            sectors.multipliers = tail * middle + (begun - tail)
            low, high = (low, middle) if sectors._factor(unknowns, sectors.multipliers) is None else (middle, high)
        sectors.multipliers = tail * (low * share) + (begun - tail)
    g = torch.randn(3, unknowns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    reach = sectors.reach(g)
    with mpmath.workdps(60):
        matrix = mpmath.matrix(unknowns, unknowns)
        for k in range(sectors.inputs):
            matrix[k, k] = mpmath.mpf(1)
        done, right = 0, mpmath.mpf(1)
        for block in sectors.blocks:
            size = block.unknowns
            for y, z, beyond in zip(*whole(block), sectors.beyond[done : done + len(block.own)], strict=True):
                t = mpmath.mpf(float(sectors.multipliers[done]))
                right += t * mpmath.mpf(float(beyond))
                y, z = ([mpmath.mpf(v) for v in row.tolist()] for row in (y, z))
                some = [a for a in range(size) if y[a] or z[a]]
                for a, b in itertools.combinations_with_replacement(some, 2):
                    matrix[a, b] += t * (y[a] * y[b] - z[a] * z[b])
                    matrix[b, a] = matrix[a, b]
                done += 1
        for row, bound in zip(g, reach.tolist(), strict=True):
            row = mpmath.matrix(row.tolist())
            best = mpmath.lu_solve(matrix, row)
            square = (row.T * best)[0]
            assert square > 0
            # No unknown goes further than `far`: close to where B is singular, the ellipsoid does.
            fits = [mpmath.mpf(most) / abs(h) for h, most in zip(best, sectors.far.tolist(), strict=True)]
            assert mpmath.mpf(bound) >= square * min(mpmath.sqrt(right / square), *fits)
            assert share > 0.9999999 or bound <= float(mpmath.sqrt(square * right)) * (1 + 1e-6)


def test_symbols_in_a_box_count_on_the_right_side() -> None:
    sectors = Sectors(1, torch.device("cpu"))
    sectors.add_boxed(torch.ones(3, dtype=torch.float64), 1.0)
    sectors.multipliers = torch.ones(3, dtype=torch.float64)
    row = torch.ones(1, 4, dtype=torch.float64)
    assert 4.0 <= float(sectors.reach(row)) <= 4.0 + 1e-9  # d and three symbols, each at its end
    assert float(sectors.reach(torch.zeros(1, 4, dtype=torch.float64))) < 1e-100


def test_choosing_multipliers_makes_bounds_smaller() -> None:
    composition, x = tiny(0)
    logits, sectors = together(composition, x, 0.3)
    rows = sectors.anchored(logits, torch.arange(3)).rows
    before = sectors.reach(rows)
    sectors.improve(rows, 40)
    assert float(sectors.reach(rows).log().mean()) < float(before.log().mean()) - 0.02


@pytest.mark.slow
def test_together_proves_what_one_by_one_does_not() -> None:
    _, _, images, labels = zoo.digits_split()
    composition = compose(zoo.load("digits-cnn"), (1, 8, 8), global_method="product")
    x, label = torch.from_numpy(images[1]), int(labels[1])
    assert not proof(composition, x, label, 0.1, Search(backwards=False))
    assert proof(composition, x, label, 0.1, Search(together=True))


@pytest.mark.parametrize("scale", [1.0, 1e-120, 1e-160, 1e-162, 3e-163])
def test_squares_that_underflow_are_charged(scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2)).double().eval().requires_grad_(False)
    x = torch.randn(2, dtype=torch.float64)
    label, moves = int(model(x).argmax()), inside((2,), 500, torch.Generator().manual_seed(0))
    model[2].weight.mul_(scale)
    model[2].bias.mul_(scale)
    composition = compose(model, (2,))
    logits, _ = together(composition, x, 2.0)
    outputs = model(x + 2.0 * moves)
    gaps = outputs[:, label] - outputs[:, 1 - label]
    assert float(zonotope.margins_together(logits, label, 30)) <= float(gaps.min())
    assert not proof(composition, x, label, 2.0, Search(together=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("seen", [1, 3, 5])
def test_what_a_basis_misses_counts(seed: int, seen: int) -> None:
    """Forms that move in directions of which the basis knows nothing, towards the input that it misses most."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 16, dtype=torch.float64, generator=generator)
    rows = torch.cat([weight.mT, torch.zeros(1, 5, dtype=torch.float64)])
    form = Form(torch.randn(5, dtype=torch.float64, generator=generator), rows, Shared(16))
    sectors = Sectors(16, torch.device("cpu"))
    sectors.narrow(form, torch.arange(5) < seen)
    assert sectors.basis is not None
    assert sectors.inputs == seen
    at = sectors.anchored(form, torch.arange(5))
    reach = sectors.reach(at.rows) + at.off
    assert bool((reach >= weight.norm(dim=1) * (1 - 1e-15)).all())
    assert bool((reach[:seen] <= weight[:seen].norm(dim=1) * (1 + 1e-9)).all())
    for entry in range(5):
        missed = weight[entry] - sectors.basis @ (sectors.basis.mT @ weight[entry])
        d = missed / missed.norm()
        told = at.c + at.rows @ (sectors.basis.mT @ d)
        assert abs(float(told[entry] - form.centre[entry] - weight[entry] @ d)) <= float(at.off[entry])


def test_a_basis_that_is_too_long_is_known_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    stretched = torch.eye(16, 2, dtype=torch.float64) * (1 + 1e-9)
    monkeypatch.setattr("torch.linalg.qr", lambda _: (stretched, None))
    form = Form(torch.zeros(2, dtype=torch.float64), torch.eye(17, 2, dtype=torch.float64), Shared(16))
    sectors = Sectors(16, torch.device("cpu"))
    sectors.narrow(form, torch.ones(2, dtype=torch.bool))
    assert sectors.basis is stretched
    row = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert 5 * (1 + 1e-9) <= float(sectors.reach(row)) <= 5 * (1 + 1e-8)  # d' = Q^T d may be that long
    assert bool((sectors.far >= 1 + 1e-9).all())


def test_what_is_left_of_a_factor_is_all_of_it() -> None:
    """More unknowns than are looked at together."""
    generator = torch.Generator().manual_seed(0)
    matrix, factor = torch.randn(2, 600, 600, dtype=torch.float64, generator=generator)
    far, factor = torch.rand(600, dtype=torch.float64, generator=generator), factor.tril()
    left = (matrix.tril() - (factor @ factor.mT).tril()).abs()
    left = left + left.tril(-1).mT
    assert _left(matrix, factor, far) == pytest.approx(float(far @ left @ far), rel=1e-10)


@pytest.mark.parametrize("made", [tiny, narrow])
def test_the_matrix_is_made_of_all_rows(made: Made) -> None:
    _, sectors = together(*made(1), 1.0)
    unknowns = sectors.inputs + len(sectors.shift)
    matrix, done = torch.zeros(unknowns, unknowns, dtype=torch.float64), 0
    matrix.diagonal()[: sectors.inputs] = 1.0
    for block in sectors.blocks:
        (y, z), t = whole(block), sectors.multipliers[done : done + len(block.own)]
        matrix[: block.unknowns, : block.unknowns] += (y.mT * t) @ y - (z.mT * t) @ z
        done += len(block.own)
    found = sectors._matrix(unknowns, sectors.multipliers)
    assert torch.allclose(found.tril(), matrix.tril(), rtol=0, atol=1e-12 * float(matrix.abs().max()))
    block = sectors.blocks[-1]
    far = torch.rand(unknowns, dtype=torch.float64)
    y, z = whole(block)
    assert torch.allclose(block.sizes(far), (y.abs() + z.abs()) @ far[: block.unknowns], rtol=1e-12)
