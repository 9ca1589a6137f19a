"""Linear classifiers have exact adversarial distances: no witness may be closer, good attacks must get near."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from crosscheck_nets import exact_distances, labelled, linear, never_too_close, planted, samples
from torch import nn

from lipaudit.crosscheck import ATTACKS, PRESETS, art, autoattack, cross_check
from lipaudit.crosscheck.registry import Batch
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.results.threat import NORMS, Norm

NEAREST = ("deepfool", "fab-t", "fab-t-quick", "fab")
IMAGES = (1, 10, 10)
"""Large enough for every attack."""
FORMS = [(name, norm) for name in ATTACKS for norm in ATTACKS[name].norms]
"""Every attack in every norm that it has a form for."""


def forms(quick: tuple[Norm, ...]) -> list[object]:
    """All forms; those in other norms than the quick ones, and of squares in L1, are slow."""
    slow = [norm not in quick or (norm == "l1" and "square" in name) for name, norm in FORMS]
    return [pytest.param(*form, marks=[pytest.mark.slow] * late) for form, late in zip(FORMS, slow, strict=True)]


FEWEST = {"square": 5, "square-5000": 5, "art-square": 5, "cw": 7}
"""Square patches do not point anywhere in particular, and C&W ends on the boundary; the others break all eight."""
STUCK = {("pgd", "l1"): 7, ("art-apgd", "l1"): 7, ("art-apgd-dlr", "l1"): 7}
"""ART's steps in L1 are along a single entry, which cannot leave the box, or shared by all."""


@pytest.fixture(autouse=True)
def fewer_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoattack, "MANY_QUERIES", 1200)
    monkeypatch.setattr(art, "SQUARE_QUERIES", 500)
    monkeypatch.setattr(art, "EAD_SEARCHES", 4)


@pytest.fixture
def fewer_steps(fewer_queries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a linear classifier, where one percent does not matter."""
    del fewer_queries
    for module, name, count in (
        (autoattack, "APGD_STEPS", 25), (autoattack, "FAB_STEPS", 20), (autoattack, "SQUARE_QUERIES", 300),
        (autoattack, "MANY_QUERIES", 400), (art, "LONG_STEPS", 40), (art, "SQUARE_QUERIES", 200),
        (art, "EAD_STEPS", 50), (art, "CW_SEARCHES", 6),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, count)


@pytest.mark.parametrize(("name", "norm"), forms(NORMS))
def test_every_attack_finds_witnesses_and_none_is_too_close(name: str, norm: Norm) -> None:
    network = linear(5, shape=IMAGES)
    inputs = samples(8, shape=IMAGES)
    labels = labelled(network, inputs)
    exact = exact_distances(network, inputs, labels, norm)
    # Budgets of twice the distance, so that attacks with a budget have something to find.
    given = {"eps": [2 * float(exact.max())], "radii": 2 * exact, "norm": norm}
    evidence = cross_check(network, inputs, labels, attacks=[name], **given)
    (record,) = evidence.records
    assert (record.status, record.attacked, record.why) == ("done", 8, "")
    assert record.broken == record.closest == len(evidence.witnesses)
    assert record.broken >= STUCK.get((name, norm), FEWEST.get(name, 8))
    assert record.median_distance == pytest.approx(np.median([w.distance for w in evidence.witnesses]))
    never_too_close(network, inputs, labels, evidence.witnesses, norm)


@pytest.mark.parametrize("name", NEAREST)
@pytest.mark.parametrize(
    "classes", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow), 12]
)
def test_minimal_attacks_come_within_one_percent(name: str, classes: int) -> None:
    network = linear(classes, seed=classes)
    inputs = samples(6, seed=classes)
    labels = labelled(network, inputs)
    evidence = cross_check(network, inputs, labels, attacks=[name], eps=[], radii=None)
    never_too_close(network, inputs, labels, evidence.witnesses)
    found = np.array([witness.distance for witness in evidence.witnesses])
    assert found == pytest.approx(exact_distances(network, inputs, labels), rel=0.01)


@pytest.mark.usefixtures("fewer_steps")
@pytest.mark.parametrize(("name", "norm"), forms(("l2",)))
@pytest.mark.parametrize(
    ("classes", "shape", "count", "dtype"),
    [
        (2, IMAGES, 3, torch.float32),
        (5, (30,), 2, torch.float64),
        pytest.param(3, IMAGES, 1, torch.float64, marks=pytest.mark.slow),
    ],
    ids=["two classes", "three, one sample, float64", "flat, float64"],
)
def test_every_attack_runs_or_says_why_not(
    name: str, norm: Norm, classes: int, shape: tuple[int, ...], count: int, dtype: torch.dtype
) -> None:
    network, inputs = linear(classes, shape=shape).to(dtype), samples(count, shape=shape).to(dtype)
    labels = labelled(network, inputs)
    exact = exact_distances(network, inputs, labels, norm)
    given = {"attacks": [name], "eps": [2 * float(exact.max())], "radii": 2 * exact, "norm": norm}
    evidence = cross_check(network, inputs, labels, **given)
    (record,) = evidence.records
    needs = ATTACKS[name].least_classes > classes or (ATTACKS[name].least_side and len(shape) != 3)
    if needs:
        assert record.status == "not run"
        assert record.why.startswith("needs ")
    else:
        assert (record.status, record.attacked, record.why) == ("done", count, "")
        assert name in FEWEST or (name, norm) in STUCK or record.broken == count
        # The same seed gives the same points, whatever the library does with random numbers.
        again = cross_check(network, inputs, labels, **given)
        assert again.witnesses == evidence.witnesses
        assert torch.equal(again.perturbed, evidence.perturbed)
    never_too_close(network, inputs, labels, evidence.witnesses, norm)


@pytest.mark.parametrize("shape", [(7,), (6, 6), (1, 6, 6)])
def test_a_single_sample_of_any_shape_in_float64(shape: tuple[int, ...]) -> None:
    network = linear(3, shape=shape).double()
    inputs = samples(1, shape=shape).double()
    labels = labelled(network, inputs)
    evidence = cross_check(network, inputs, labels, attacks="standard", eps=[0.05, 5.0], radii=np.array([5.0]))
    assert evidence.perturbed.shape == inputs.shape
    assert evidence.perturbed.dtype == torch.float64
    assert evidence.attacked == (True,)
    assert [record.status for record in evidence.records] == ["done"] * 4
    never_too_close(network, inputs, labels, evidence.witnesses)
    truth = exact_distances(network, inputs, labels)[0]
    assert evidence.witnesses[0].distance == pytest.approx(truth, rel=0.01)


class Rescaled(nn.Module):
    """A linear classifier on inputs of another box."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.inner, self.low, self.high = linear(4), low, high

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return self.inner((raw - self.low) / (self.high - self.low))


@pytest.mark.parametrize("name", ["deepfool", "fab-t", "apgd-ce", "pgd-at-radius"])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 255.0)])
def test_boxes_other_than_the_unit_box_are_in_raw_units(low: float, high: float, name: str) -> None:
    network = Rescaled(low, high)
    unit = samples(6)
    inputs = unit * (high - low) + low
    labels = labelled(network, inputs)
    truth = exact_distances(network.inner, unit, labels) * (high - low)
    budget = float(np.sort(truth)[2:4].mean())
    radii = np.full(6, budget)
    evidence = cross_check(network, inputs, labels, attacks=[name], eps=[budget], radii=radii, low=low, high=high)
    found = {witness.sample: witness.distance for witness in evidence.witnesses}
    assert evidence.perturbed.min() >= low
    assert evidence.perturbed.max() <= high
    if name in NEAREST:
        assert [found[row] for row in range(6)] == pytest.approx(list(truth), rel=0.01)
    else:
        # Plain PGD follows the cross-entropy, which does not point exactly at the nearest class.
        nearest = set(np.argsort(truth)[:3].tolist())
        assert set(found) == nearest if name == "apgd-ce" else set(found) <= nearest and len(found) >= 2
        assert all(truth[row] * (1 - 1e-6) <= length <= budget * 1.00001 for row, length in found.items())


def test_inflated_radii_are_refuted_and_true_ones_are_not() -> None:
    network = linear(6)
    inputs = samples(6)
    labels = labelled(network, inputs)
    exact = exact_distances(network, inputs, labels)
    for factor in (3.0, 0.9999):
        radii = factor * exact
        for attacks in ("pgd-at-radius", "quick"):
            evidence = cross_check(network, inputs, labels, attacks=attacks, eps=[], radii=radii)
            refuted = {w.sample for w in evidence.witnesses if w.distance <= radii[w.sample]}
            if factor < 1:
                assert not refuted
            else:
                assert refuted == set(range(6))


def test_pgd_at_radius_stays_within_the_radius() -> None:
    """ART overshoots, the judge draws in: a radius that is too large by a hundred-thousandth is refuted."""
    network = linear(2)
    inputs = samples(6)
    labels = labelled(network, inputs)
    radii = exact_distances(network, inputs, labels) * (1 + 1e-5)
    evidence = cross_check(network, inputs, labels, attacks=["pgd-at-radius"], eps=[], radii=radii)
    assert [w.distance <= radii[w.sample] for w in evidence.witnesses] == [True] * 6


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_what_float32_puts_outside_the_ball_by_an_ulp_counts(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    network, inputs = linear(2), samples(6)
    labels = labelled(network, inputs)
    steepest = (network[1].weight[1] - network[1].weight[0]).detach()
    if norm == "l1":
        steepest = torch.where(steepest.abs() == steepest.abs().max(), steepest, 0.0)

    def run(_network: UnitBox, batch: Batch) -> Iterator[torch.Tensor]:
        ahead = (1 - 2 * batch.labels.float()[:, None]) * steepest.sign()
        assert batch.budget is not None
        yield batch.inputs + ((batch.budget.float()[:, None] + 2**-23) * ahead).reshape(batch.inputs.shape)

    monkeypatch.setitem(ATTACKS._entries, "planted", planted(run, "eps"))
    for row, exact in enumerate(exact_distances(network, inputs, labels, norm)):
        eps = exact * (1 + 1e-5)  # float32 sees a boundary up to so much beyond
        some = slice(row, row + 1)
        evidence = cross_check(
            network, inputs[some], labels[some], attacks=["planted"], eps=[eps], radii=None, norm=norm
        )
        assert [witness.distance <= eps for witness in evidence.witnesses] == [True]


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_presets_of_other_norms_run_and_tell_the_closest_point(norm: Norm, fewer_steps: None) -> None:
    del fewer_steps
    network, inputs = linear(5, shape=IMAGES), samples(4, shape=IMAGES)
    labels = labelled(network, inputs)
    exact = exact_distances(network, inputs, labels, norm)
    given = {"eps": [0.5 * float(exact.min()), 2 * float(exact.max())], "radii": 0.9 * exact, "norm": norm}
    evidence = cross_check(network, inputs, labels, attacks="standard", **given)
    assert [(record.name, record.status) for record in evidence.records] == [
        ("fab-t", "done"), ("slide-at-radius" if norm == "l1" else "pgd-at-radius", "done"),
        ("apgd-ce-5" if norm == "l1" else "apgd-ce", "done"), ("apgd-t", "done"), ("square-5000", "done"),
    ]  # fmt: skip
    assert evidence.norm == norm
    assert [witness.distance for witness in evidence.witnesses] == pytest.approx(list(exact), rel=0.01)
    never_too_close(network, inputs, labels, evidence.witnesses, norm)
    # AutoAttack's at the largest budget only, where everything is broken by then.
    assert [record.attacked for record in evidence.records] == [4, 4, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "norm"), [(name, norm) for name in ATTACKS for norm in NORMS if norm not in ATTACKS[name].norms]
)
def test_an_attack_without_the_norm_is_not_run_in_another(name: str, norm: Norm) -> None:
    network, inputs = linear(3), samples(2)
    given = {"attacks": [name], "eps": [1.0], "radii": np.ones(2), "norm": norm}
    evidence = cross_check(network, inputs, labelled(network, inputs), **given)
    (record,) = evidence.records
    assert (record.status, record.why, record.attacked) == ("not run", f"{name} has no {norm} form", 0)
    assert not evidence.witnesses


def test_perturbed_holds_the_witness_and_clean_inputs_elsewhere() -> None:
    network = linear(3)
    inputs = samples(6)
    labels = labelled(network, inputs)
    exact = exact_distances(network, inputs, labels)
    eps = float(np.sort(exact)[2:4].mean())
    evidence = cross_check(network, inputs, labels, attacks=["apgd-ce"], eps=[eps], radii=None)
    assert {w.sample for w in evidence.witnesses} == set(np.argsort(exact)[:3].tolist())
    judge = linear(3).double()
    for row in range(6):
        point = evidence.perturbed[row]
        witness = next((w for w in evidence.witnesses if w.sample == row), None)
        if witness is None:
            assert torch.equal(point, inputs[row].double())
            continue
        assert int(judge(point[None]).argmax()) == witness.prediction != int(labels[row])
        length = (point - inputs[row].double()).norm().item()
        assert length <= witness.distance <= length * (1 + 1e-12)


def test_channels_last_networks_and_inputs() -> None:
    """AutoAttack takes views of inputs, which tensors in channels-last order refuse."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 6 * 6, 5))
    network = network.to(memory_format=torch.channels_last)
    inputs = torch.rand(2, 16, 8, 8).to(memory_format=torch.channels_last)
    labels = labelled(network, inputs)
    attacks = [name for name in PRESETS["l2"]["full"] if name != "fab-t"] + ["pgd", "art-apgd", "cw", "hopskipjump"]
    evidence = cross_check(network, inputs, labels, attacks=attacks, eps=[1e-4], radii=np.full(2, 1e-4))
    assert [(record.status, record.why) for record in evidence.records] == [("done", "")] * 9
    assert len(evidence.witnesses) == 2
