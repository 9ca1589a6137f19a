"""Certified radii: exact where the truth is known, zero where nothing is proved, never beyond an attack."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from quick import mostly_slow
from samples import NETWORKS, composed
from torch import nn

import lipaudit
from lipaudit import zoo
from lipaudit.certification.certificates import certify_with
from lipaudit.certification.margins import ErrorRecursion
from lipaudit.certification.network_bound import compose
from lipaudit.domains.graph import evaluate
from lipaudit.domains.rounding import float64
from lipaudit.errors import BadThreat, NotLipschitz


def classifier(weight: list[list[float]], bias: list[float] | None = None) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data = torch.tensor(weight)
    layer.bias.data = torch.tensor(bias or [0.0] * len(weight))
    return layer.eval().requires_grad_(False)


def test_linear_classifier_has_its_exact_distance_rounded_down() -> None:
    model = classifier([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    x = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    certificates = lipaudit.certify(model, x)
    for row, point in enumerate(x.double()):
        logits = model.double()(point[None])[0]
        best = int(logits.argmax())
        distances = [
            float((logits[best] - logits[j]) / (model.weight[best] - model.weight[j]).norm())
            for j in range(3)
            if j != best
        ]
        assert certificates.prediction[row] == best
        assert min(distances) * (1 - 1e-8) <= certificates.radius[row] < min(distances)
        model.float()


def test_ties_and_wrong_predictions_have_radius_zero() -> None:
    model = classifier([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    assert lipaudit.certify(model, x).radius.tolist()[0] == 0.0
    certified = lipaudit.certify(model, x, labels=[2, 0])
    assert certified.radius.tolist() == [0.0, 0.0]
    assert certified.margin[1] == -1.0


def test_equal_rows_cannot_be_told_apart() -> None:
    """Two classes with one row: the constant margin between them needs no Lipschitz bound."""
    model = classifier([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [1.0, 0.0, 0.0])
    radius = lipaudit.certify(model, torch.tensor([[1.0, 0.0]])).radius[0]
    assert 0 < radius <= 2 / 2**0.5


@pytest.mark.parametrize("rows", [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]], ids=["told apart", "constant"])
def test_a_tie_has_radius_zero_and_not_less(rows: list[list[float]]) -> None:
    radius = lipaudit.certify(classifier(rows), torch.tensor([[0.5, 0.5]])).radius[0]
    assert radius == 0.0
    assert math.copysign(1.0, radius) == 1.0


def test_cancelling_biases_swallow_the_margin() -> None:
    """The margin 1e-12 is below the rounding of logits near 1e6: nothing is certified."""
    model = classifier([[1.0, 0.0], [0.0, 1.0]], [1e6, 1e6]).double()
    x = torch.tensor([[0.5 + 1e-12, 0.5]], dtype=torch.float64)
    assert lipaudit.certify(model, x).radius[0] == 0.0


def test_without_labels_the_prediction_is_certified_and_one_hot_labels_work() -> None:
    model = classifier([[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[0.9, 0.1]])
    plain = lipaudit.certify(model, x)
    assert plain.radius[0] == lipaudit.certify(model, x.numpy(), labels=np.array([[1, 0]])).radius[0] > 0.5


@pytest.mark.parametrize(
    ("inputs", "labels", "reason"),
    [
        (torch.zeros(0, 2), None, "n >= 1"),
        (torch.tensor([[float("nan"), 0.0]]), None, "finite inputs"),
        (torch.zeros(1, 2, dtype=torch.uint8), None, "floating-point"),
        (torch.zeros(1, 2), [2], "labels from 0 to 1"),
        (torch.zeros(1, 2), [-1], "labels from 0 to 1, got -1 to -1"),
        (torch.zeros(2, 2), [0], "2 integer or one-hot labels"),
        (torch.zeros(1, 2), torch.tensor([0.5]), "integer or one-hot"),
    ],
)
def test_unfit_inputs_are_refused(inputs: torch.Tensor, labels: object, reason: str) -> None:
    with pytest.raises(BadThreat, match=reason):
        lipaudit.certify(classifier([[1.0, 0.0], [0.0, 1.0]]), inputs, labels)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("op", NETWORKS)
def test_gradient_ascent_inside_the_radius_changes_nothing(op: str, count: int) -> None:
    network, composition = composed(op)
    x = torch.rand(count, *network.shape, generator=torch.Generator().manual_seed(4))
    certificates = certify_with(composition, x)
    for row, point in enumerate(x.double()):
        best, radius = int(certificates.prediction[row]), float(certificates.radius[row])
        for other in {0, 1, 2, 3} - {best}:
            moved = point.clone()
            for _ in range(20):
                moved = moved.requires_grad_()
                logits = network(moved[None])[0]
                try:
                    (gradient,) = torch.autograd.grad(logits[other] - logits[best], moved)
                except RuntimeError as error:
                    if "derivative for" not in str(error):
                        raise
                    pytest.skip(f"torch {torch.__version__}: {error}")
                step = moved.detach() + gradient / gradient.norm().clamp_min(1e-30) * radius / 4
                moved = point + (step - point) * min(1.0, radius * (1 - 1e-12) / max(1e-300, (step - point).norm()))
                if composition.network.domain is not None:
                    moved = moved.clamp(*composition.network.domain)
            assert int(network(moved[None])[0].argmax()) == best


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("op", NETWORKS)
def test_error_recursion_covers_single_precision(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same recursion with the unit roundoff of float32 must cover what float32 evaluation really loses."""
    composition = composed(op)[1]
    recursion = ErrorRecursion(composition)
    monkeypatch.setattr(float64, "gamma", lambda n: n * 2.0**-24 * 1.02)
    for seed in range(3):
        x = torch.rand(composition.graph.input_shape, generator=torch.Generator().manual_seed(seed))
        _, allowed = recursion(x.double())
        lost = evaluate(composition.graph, x).double() - evaluate(composition.graph, x.double())
        assert float(lost.norm()) <= allowed


def test_the_float_margin_is_not_above_the_exact_one_less_the_error() -> None:
    """Exact rational arithmetic on a dense ReLU network: the claimed error covers the true one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).eval().requires_grad_(False)
    recursion = ErrorRecursion(compose(model, (6,)))
    for seed in range(20):
        x = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        logits, error = recursion(x)
        z = [Fraction(v) for v in x.tolist()]
        for layer in (model[0], model[2]):
            z = [
                sum((Fraction(w) * v for w, v in zip(row, z, strict=True)), Fraction(b))
                for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            ]
            z = [max(v, Fraction(0)) for v in z] if layer is model[0] else z
        square = sum((Fraction(v) - exact) ** 2 for v, exact in zip(logits, z, strict=True))
        assert square <= Fraction(error) ** 2
        assert error < 1e-12


def test_the_jump_of_softplus_at_its_threshold_is_not_certified_away() -> None:
    """torch's softplus falls by 2e-9 at 20: above the rounding of float64, far below that of float32."""
    head = classifier([[1.0], [0.0]]).double()
    head.bias.data = torch.tensor([0.0, 20 + 1e-9], dtype=torch.float64)
    model = nn.Sequential(nn.Softplus(), head).eval()
    x = torch.tensor([[20.0]], dtype=torch.float64)

    below, above = model(x)[0], model(x + 1e-12)[0]
    assert below[0] - below[1] > 0 > above[0] - above[1]
    with pytest.raises(NotLipschitz, match=r"softplus with threshold 20 jumps by 2.1e-09 where it becomes x"):
        lipaudit.certify(model, x)
    model[0].threshold = 40
    assert 0 < lipaudit.certify(model, x).radius[0] < 2e-9
    model[0].threshold = 20
    assert lipaudit.bound(model.float(), (1,)).value == pytest.approx(1.0, rel=1e-9)


class Gated(nn.Module):
    """A product of two activations: it has a bound only where the inputs are bounded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.value, self.gate, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.value(x) * torch.sigmoid(self.gate(x)))


def test_products_of_activations_are_certified_in_the_domain_that_is_given() -> None:
    model, x = Gated().eval(), torch.tensor([[0.2, 0.9, 0.4]])
    with pytest.raises(NotLipschitz, match=r"domain=\(0, 1\)"):
        lipaudit.certify(model, x)
    assert lipaudit.certify(model, x, domain=(0, 1)).radius[0] > 0
    with pytest.raises(BadThreat, match=r"expected inputs in the domain \[0, 1\], got entries from 0.4 to 1.8"):
        lipaudit.certify(model, 2 * x, domain=(0, 1))


def test_more_digits_are_taken_where_rounding_costs_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, images, labels = zoo.digits_split()
    composition = compose(zoo.load("digits-cnn"), (1, 8, 8), global_method="product")
    points, answers = torch.from_numpy(images[:3]), labels[:3].tolist()
    evaluated = ErrorRecursion(composition)
    for x in points.double():
        plain, loose = evaluated(x)
        careful, tight = evaluated(x, careful=True)
        assert tight < loose / 50
        assert max(abs(a - b) for a, b in zip(plain, careful, strict=True)) <= loose + tight
    usual = certify_with(composition, points, answers)
    monkeypatch.setattr("lipaudit.certification.margins._HARMLESS", 0.0)
    better = certify_with(composition, points, answers)
    assert better.rounding < usual.rounding / 50
    assert (better.radius >= usual.radius).all()


def test_radii_below_the_resolution_of_the_inputs_are_not_worth_more_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rounding takes a part of a radius that says nothing, it may; where it takes all of it, it may not."""
    _, _, images, labels = zoo.digits_split()
    composition = compose(zoo.load("digits-cnn"), (1, 8, 8), global_method="product")
    points, answers = torch.from_numpy(images[:2]), labels[:2].tolist()
    usual = certify_with(composition, points, answers)
    asked: list[bool] = []
    share = [0.0]
    honest = ErrorRecursion.__call__

    def noisy(self, x, *, careful=False):
        asked.append(careful)
        logits, error = honest(self, x, careful=careful)
        return logits, error if careful else share[0] * min(usual.margin)

    monkeypatch.setattr(ErrorRecursion, "__call__", noisy)
    monkeypatch.setattr("lipaudit.certification.margins.resolution", lambda _: 1.0)
    for share[0], expected in ((0.1, [False, False]), (0.6, [False, True] * 2)):
        asked.clear()
        found = certify_with(composition, points, answers)
        assert asked[: len(expected)] == expected
        assert (found.radius > 0).all()
        assert (found.radius <= usual.radius * (1 + 1e-6)).all()
    monkeypatch.setattr("lipaudit.certification.margins.resolution", lambda _: 0.0)
    asked.clear()
    share[0] = 0.1
    certify_with(composition, points, answers)
    assert asked == [False, True] * 2


@pytest.mark.parametrize("arithmetic", ["real", "float64"])
@pytest.mark.parametrize("seed", mostly_slow(range(8), 3))
def test_rounding_counts_where_the_squares_of_its_errors_underflow(seed: int, arithmetic: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(1, 400, dtype=torch.float64, generator=generator)
    near = row + 1e-15 * row.abs() * torch.randn(1, 400, dtype=torch.float64, generator=generator)
    model = nn.Linear(400, 2, bias=False).double().requires_grad_(False).eval()
    model.weight.copy_(torch.cat([row, near]) * 2.0**-600)
    x = torch.rand(1, 400, dtype=torch.float64, generator=generator)

    certificates = lipaudit.certify(model, x, local="off", arithmetic=arithmetic)

    first, second = ([Fraction(v) * 2**600 for v in weights] for weights in model.weight.tolist())
    margin = sum((a - b) * Fraction(v) for a, b, v in zip(first, second, x[0].tolist(), strict=True))
    margin = margin if certificates.prediction[0] == 0 else -margin
    radius, length = (
        Fraction(float(certificates.radius[0])),
        sum((a - b) ** 2 for a, b in zip(first, second, strict=True)),
    )
    assert radius == 0 or (margin > 0 and radius**2 * length <= margin**2)


class Said:
    """The stages that a progress was told of."""

    def __init__(self) -> None:
        self.stages: dict[str, int] = {}

    def start(self, stage: str, total: int | None = None) -> None:
        del total
        self.now = self.stages[stage] = 0
        self.stage = stage

    def advance(self, units: int = 1, note: str = "") -> None:
        del note
        self.stages[self.stage] += units

    def finish(self, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...


@pytest.mark.parametrize("arithmetic", ["real", "native"])
def test_local_radii_that_are_asked_for_and_missing_are_explained(arithmetic: str) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 5)
    ruled = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    unruled = nn.Sequential(nn.Linear(5, 6), nn.Softmin(1), nn.LayerNorm(6), nn.Linear(6, 3))
    said = Said()
    found = lipaudit.certify(ruled, x, local="on", arithmetic=arithmetic, progress=said)
    assert found.why_not == ""
    assert said.stages["local radii"] == 2
    assert ("local radii, native arithmetic" in said.stages) == (arithmetic == "native")
    found = lipaudit.certify(unruled.eval(), x, local="on", domain=(0.0, 1.0))
    assert found.radius.all()
    assert found.why_not.startswith("local radii, 0 tried: ")
    assert lipaudit.certify(unruled, x, domain=(0.0, 1.0)).why_not == ""
