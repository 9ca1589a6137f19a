"""What the harness does around the attacks: selection, failures, limits, lies."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from crosscheck_nets import Recorder, exact_distances, labelled, linear, planted, samples, unchanged
from torch import Tensor, nn

from lipaudit.crosscheck import (
    ATTACKS,
    PRESETS,
    Interrupted,
    art,
    autoattack,
    cross_check,
    estimate_seconds,
    plan,
    runner,
)
from lipaudit.crosscheck.registry import ART, Batch, Passes, attack
from lipaudit.crosscheck.unit_box import UnitBox
from lipaudit.crosscheck.verification import INWARD_STEPS, drawn_in
from lipaudit.errors import BadThreat, CaptureError
from lipaudit.results.threat import written


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch):
    """Puts a generator function into the table as the attack "planted"."""

    def put(run, aim: str = "closest") -> None:
        monkeypatch.setitem(ATTACKS._entries, "planted", planted(run, aim))

    return put


def check(network: nn.Module, inputs: Tensor, labels: Tensor | None = None, **given):
    labels = labelled(network, inputs) if labels is None else labels
    settings = {"attacks": ["planted"], "eps": [], "radii": None} | given
    return cross_check(network, inputs, labels, **settings)


def test_only_correct_samples_in_the_box_are_attacked() -> None:
    network, inputs = linear(4), samples(6)
    inputs[4, 0, 0, 0] = 1.5
    labels = labelled(network, inputs)
    labels[1] = (labels[1] + 1) % 4
    evidence = check(network, inputs, labels, attacks="quick", radii=np.ones(6), eps=[0.3])
    assert evidence.attacked == (True, False, True, True, False, True)
    assert {w.sample for w in evidence.witnesses} <= {0, 2, 3, 5}
    assert evidence.predictions == tuple(labelled(network, inputs).tolist())
    assert evidence.flags == ("1 samples lie outside the box and were not attacked",)


def test_attacks_with_a_budget_get_only_what_is_left() -> None:
    network, inputs = linear(4), samples(12)
    exact = np.sort(exact_distances(network, inputs, labelled(network, inputs)))
    small, large = float(exact[3:5].mean()), float(exact[8:10].mean())
    evidence = check(network, inputs, attacks=["apgd-ce", "fab-t"], eps=[large, small])
    first, second = evidence.records
    assert (first.name, first.attacked, first.broken) == ("fab-t", 12, 12)
    assert (second.name, second.attacked, second.broken, second.closest) == ("apgd-ce", 8, 0, 0)
    assert second.settings.endswith(f"at eps {written(small)}, {written(large)}")


def test_every_sample_broken_leaves_nothing_to_attack() -> None:
    evidence = check(linear(4), samples(4), attacks=["apgd-ce", "fab-t"], eps=[5.0])
    assert evidence.records[1].attacked == 0
    assert (evidence.records[1].status, evidence.records[1].why) == ("done", "no sample was left to attack")


def test_what_cannot_run_says_why() -> None:
    flat = samples(3, shape=(9,))
    evidence = check(linear(3, shape=(9,)), flat, attacks="full", radii=None, eps=[0.1])
    why = {record.name: record.why for record in evidence.records if record.status == "not run"}
    assert why == {
        "pgd-at-radius": "there are no certified radii",
        "apgd-t": "needs at least 4 classes, the network has 3",
        "square": "needs inputs of shape (channels, height, width), got (9,)",
    }
    evidence = check(linear(5), samples(3), attacks=["apgd-ce"])
    assert evidence.records[0].why == "no budget eps was given"


def test_radii_below_float32_resolution_are_skipped_and_counted() -> None:
    radii = np.array([1e-12, 0.5, 1e-12, math.inf])
    (record,) = check(linear(4), samples(4), attacks=["pgd-at-radius"], radii=radii).records
    assert record.attacked == 2
    assert record.why == "2 of 4 samples skipped: their radius is below the resolution of float32 inputs"
    (record,) = check(linear(4), samples(4), attacks=["pgd-at-radius"], radii=np.full(4, 1e-12)).records
    assert (record.status, record.attacked) == ("not run", 0)


def test_lies_are_rejected_and_counted(plant) -> None:
    def lies(_network, batch):
        claim = unchanged(batch)
        claim[0] = math.nan
        claim[1] += 1e-4  # still classified correctly: not even claimed
        claim[2] = 1e6  # outside the box; clipped, it may count or not
        yield claim

    plant(lies)
    evidence = check(linear(2), samples(4))
    (record,) = evidence.records
    assert record.status == "done"
    assert 1 <= record.rejected <= 2
    assert {w.sample for w in evidence.witnesses} <= {2}
    assert evidence.perturbed.isfinite().all()
    assert evidence.perturbed.max() <= 1


def test_an_attack_without_a_claim_has_found_nothing(plant) -> None:
    def silent(_network, _batch):
        yield from ()

    plant(silent)
    evidence = check(linear(2), samples(4))
    (record,) = evidence.records
    assert (record.status, record.rejected, evidence.witnesses) == ("done", 0, ())


@pytest.mark.parametrize("aim", ["closest", "radius"])
def test_a_batch_that_claims_nothing_within_a_radius_costs_one_judgement(plant, aim: str) -> None:
    """As every attack at a certified radius should: points are moved, and no answer changes."""
    judged: list[int] = []

    class Judge(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            judged.append(len(inputs))
            return torch.stack([linear(2).double()(sample[None])[0] for sample in inputs])

    def idle(_network, batch):
        yield (batch.inputs + 1e-6).clamp(0, 1)

    plant(idle, aim)
    (record,) = check(linear(2), samples(4), judge=Judge(), radii=np.ones(4)).records
    assert (record.status, record.why, record.attacked, record.broken, record.rejected) == ("done", "", 4, 0, 0)
    assert judged == [1, 4, 4], "the probe, the clean inputs, and the claims"


def test_a_flip_that_only_happens_in_a_batch_is_rejected(plant) -> None:
    class Mixing(nn.Module):
        """Flips its answer for shifted inputs, but only if they do not come alone."""

        def forward(self, inputs: Tensor) -> Tensor:
            first = inputs.flatten(1)[:, 0] - 0.5
            sign = -1.0 if len(inputs) > 1 else 1.0
            margin = torch.where(first > 0.2, sign * torch.ones_like(first), torch.ones_like(first))
            return torch.stack([margin, 0 * first], 1)

    def shift(_network, batch):
        yield (batch.inputs + 0.3).clamp(0, 1)

    plant(shift)
    inputs = torch.full((3, 1, 2, 2), 0.5)
    evidence = check(Mixing(), inputs, torch.zeros(3, dtype=torch.int64))
    assert evidence.witnesses == ()
    assert evidence.records[0].rejected == 3


def test_a_margin_within_the_noise_is_no_witness(plant) -> None:
    class Close(nn.Module):
        """Logits of size 1 that differ by 1e-12."""

        def forward(self, inputs: Tensor) -> Tensor:
            first = inputs.flatten(1)[:, 0]
            gap = torch.where(first > 0.6, -1e-12, 1e-12).double()
            return torch.stack([1 + gap, 1 + 0 * first.double()], 1)

    def shift(_network, batch):
        yield (batch.inputs + 0.3).clamp(0, 1)

    plant(shift)
    evidence = check(Close(), torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64))
    assert evidence.attacked == (True, True)
    assert evidence.witnesses == ()


@pytest.mark.parametrize("fault", ["raises", "wrong shape"])
def test_a_failing_attack_is_recorded_and_the_rest_go_on(plant, fault: str) -> None:
    def broken(_network, batch):
        if fault == "raises":
            raise RuntimeError("no luck\nand a second line")
        yield batch.inputs[:, :1]

    plant(broken)
    recorder = Recorder()
    evidence = check(linear(3), samples(4), attacks=["planted", "fab-t-quick"], progress=recorder)
    failed, fine = evidence.records
    assert failed.status == "failed"
    assert "\n" not in failed.why
    assert failed.why.startswith("RuntimeError: no luck" if fault == "raises" else "ValueError: expected claims")
    assert (failed.attacked, failed.broken) == (0, 0)
    assert (fine.status, fine.broken) == ("done", 4)
    kinds = [kind for kind, _ in recorder.heard]
    assert kinds.count("start") == kinds.count("finish") == 2


def test_an_interrupt_passes_and_brings_the_evidence_so_far(plant) -> None:
    batches = []

    def stopped(_network, batch):
        batches.append(len(batch.inputs))
        if len(batches) == 3:
            raise KeyboardInterrupt
        yield 1 - batch.inputs

    plant(stopped)
    network, inputs = linear(3), samples(10)
    inputs[:] = inputs[:1]
    with pytest.raises(KeyboardInterrupt) as caught:
        check(network, inputs, attacks=["planted", "deepfool", "apgd-ce"], eps=[0.1], batch_size=3)
    assert isinstance(caught.value, Interrupted)
    evidence = caught.value.evidence
    assert evidence.attacked == (True,) * 6 + (False,) * 4
    assert [w.sample for w in evidence.witnesses] == list(range(6))
    assert [(r.status, r.why) for r in evidence.records] == [
        ("done", "interrupted"),
        ("not run", "interrupted"),
        ("not run", "interrupted"),
    ]


def test_no_batch_begins_after_the_deadline(plant, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]

    def slow(_network, batch):
        clock[0] += 10
        yield 1 - batch.inputs
        raise AssertionError("no claim is asked for after the deadline")

    plant(slow)
    fake = SimpleNamespace(monotonic=lambda: clock[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(runner, "time", fake)
    evidence = check(linear(3), samples(9), attacks=["planted", "deepfool"], batch_size=3, deadline=105.0)
    first, second = evidence.records
    assert (first.status, first.attacked, first.why) == ("done", 3, "time limit reached at 3 of 9 samples")
    assert (second.status, second.why) == ("not run", "time limit reached")
    late = check(linear(3), samples(2), attacks="standard", deadline=105.0)
    assert {record.status for record in late.records} == {"not run"}


def test_progress_tells_stages_and_scores() -> None:
    recorder = Recorder()
    network, inputs = linear(3), samples(5)
    check(network, inputs, attacks=["fab-t-quick"], eps=[36 / 255], progress=recorder, batch_size=2)
    assert recorder.heard[0] == ("start", ("attack fab-t-quick", 5))
    assert [units for kind, units in recorder.heard if kind == "advance"] == [2, 2, 1]
    truth = exact_distances(network, inputs, labelled(network, inputs))
    assert recorder.heard[-1] == ("finish", f"broken at 36/255: {(truth <= 36 / 255).sum()} of 5")


def test_plan_expands_presets_and_puts_minimal_attacks_first() -> None:
    names = [entry.name for entry in plan(["apgd-ce", "quick", "fab-t"])]
    assert names == ["deepfool", "fab-t-quick", "fab-t", "pgd-at-radius", "apgd-ce"]
    assert plan("none") == ()
    assert all(name in ATTACKS for presets in PRESETS.values() for preset in presets.values() for name in preset)
    with pytest.raises(BadThreat, match=r"'pdg'; did you mean pgd\? there are attacks: .*deepfool.* presets: none, q"):
        plan(["pdg"])


def test_every_attack_has_a_claim_and_a_cost() -> None:
    for name in ATTACKS:
        assert ATTACKS.claim(name).endswith(".")
        for classes in (2, 3, 10, 1000):
            passes = ATTACKS[name].passes(classes)
            assert passes.forward > 0
            assert passes.claims >= 1
            assert ATTACKS[name].settings(classes, "l2")


def test_an_attack_is_added_by_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan`, the presets' messages, the record and its library's version have it from nowhere else."""
    monkeypatch.setattr(ATTACKS, "_entries", dict(ATTACKS._entries))

    @attack(
        "trial", library=ART, aim="closest", norms=("l2",), settings=lambda *_: "none", passes=lambda _: Passes(1, 1)
    )
    def trial(network: UnitBox, batch: Batch) -> Iterator[Tensor]:
        """Inverts the image."""
        del network
        yield 1 - batch.inputs

    network, inputs = linear(3), samples(4)
    (record,) = check(network, inputs, labelled(network, inputs), attacks=["trial"]).records
    assert (record.name, record.settings, record.status) == ("trial", "none", "done")
    assert record.library.startswith("ART 1")
    assert [entry.name for entry in plan("trial")] == ["trial"]
    with pytest.raises(BadThreat, match="did you mean trial"):
        plan("trail")


def test_no_attack_makes_more_passes_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate of the running time rests on these numbers."""
    for module, name, count in (
        (autoattack, "SQUARE_QUERIES", 300), (autoattack, "MANY_QUERIES", 400), (art, "SQUARE_QUERIES", 200),
        (art, "EAD_SEARCHES", 3), (art, "EAD_STEPS", 30), (autoattack, "FAB_STEPS", 30),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, count)
    stops_early = ("deepfool", "cw", "elasticnet")  # or has line searches, or fewer classes than there might be
    counts = {"forward": 0, "backward": 0}

    def forwards(_module, _inputs, output: Tensor) -> None:
        # The judge, a float64 copy, is counted apart in the estimate.
        if output.dtype == torch.float32:
            counts["forward"] += len(output)
            if output.requires_grad:
                output.register_hook(lambda grad: counts.update(backward=counts["backward"] + len(grad)))

    some = [("deepfool", "l2"), ("pgd-at-radius", "l2"), ("apgd-ce", "l2"), ("fab-t-quick", "l2")]
    every = [(name, norm) for name in ATTACKS for norm in ATTACKS[name].norms]
    for classes, names in ((4, every), (12, some)):
        network, inputs = linear(classes, shape=(1, 10, 10)), samples(2, shape=(1, 10, 10))
        labels = labelled(network, inputs)
        network.register_forward_hook(forwards)
        for name, norm in names:
            counts.update(forward=0, backward=0)
            radii = 0.9 * exact_distances(network, inputs, labels, norm)
            given = {"attacks": [name], "eps": [float(radii.min())], "radii": radii, "norm": norm}
            (record,) = check(network, inputs, labels, **given).records
            passes = ATTACKS[name].passes(classes)
            assert record.status == "done"
            # The harness itself looks at each claim, to tell a false claim from none, and draws the closest one in.
            assert counts["forward"] <= 2 * (passes.forward + passes.claims + INWARD_STEPS + 2), name
            assert counts["backward"] <= 2 * passes.backward + 1, name  # whether there is a gradient
            if name not in stops_early:
                assert counts["forward"] >= 0.8 * 2 * passes.forward, name
                assert counts["backward"] >= 0.8 * 2 * passes.backward, name


def test_the_estimate_covers_every_attack_and_grows_with_the_work() -> None:
    network, inputs = linear(10), samples(8)
    one = estimate_seconds(network, inputs, attacks="full", samples=10, eps=[0.1], classes=10)
    assert list(one) == list(PRESETS["l2"]["full"])
    assert all(seconds > 0 for seconds in one.values())
    assert one["apgd-t"] > one["apgd-ce"]
    assert estimate_seconds(network, inputs, attacks="none", samples=10, eps=[0.1], classes=10) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": [0.0]}, "budgets eps that are finite and above 0, got 0.0"),
        ({"eps": [math.nan]}, "got nan"),
        ({"radii": np.ones(3)}, "expected 4 radii"),
        ({"radii": np.array([1, 1, -1, 1.0])}, "none negative"),
        ({"radii": np.array([1, 1, np.nan, 1.0])}, "none negative"),
        ({"low": 1.0}, "finite low < high"),
        ({"labels": torch.tensor([0, 1, 2, 3])}, "labels from 0 to 2"),
        ({"labels": torch.zeros(4)}, "integer labels"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "expected 4 integer labels"),
        ({"inputs": torch.full((4, 2, 5, 5), math.nan)}, "finite inputs"),
        ({"inputs": torch.zeros(0, 2, 5, 5)}, "at least one"),
        ({"inputs": torch.zeros(4, 2, 5, 5, dtype=torch.uint8)}, "torch.uint8"),
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(50, 1))}, "at least 2 classes"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_one_line(change: dict, message: str) -> None:
    given = {"network": linear(3), "inputs": samples(4), "labels": torch.zeros(4, dtype=torch.int64)} | change
    with pytest.raises(BadThreat) as caught:
        check(attacks="quick", **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_tied_to_one_dtype_cannot_be_judged() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear(3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.inner(inputs.float())

    with pytest.raises(CaptureError, match="runs in float64"):
        check(Tied(), samples(2), attacks="quick")


def test_a_network_that_cannot_be_copied_is_refused() -> None:
    network = linear(3)
    network.register_buffer("derived", network[1].weight * 2)
    with pytest.raises(CaptureError, match="can copy"):
        check(network, samples(2), attacks="quick")


def test_what_is_drawn_in_stays_misclassified() -> None:
    """Margins far from straight, so that many tries land on the wrong side of the boundary."""

    def logits(x: Tensor) -> Tensor:
        margin = torch.tanh(20 * (0.3 - x[:, :1])) + 0.5 * (0.3 - x[:, :1])
        return torch.cat([margin, -margin], 1)

    clean = torch.zeros(200, 2, dtype=torch.float64)
    points = torch.linspace(0.31, 1.0, 200, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 0.5]])
    labels = torch.zeros(200, dtype=torch.int64)
    drawn = drawn_in(logits, clean, points, labels, 0.0, 1.0)
    assert bool((logits(drawn).argmax(1) == 1).all())
    assert bool((drawn.norm(dim=1) <= points.norm(dim=1)).all())
    assert float((drawn[:, 0] - 0.3).median()) < 1e-3


def test_a_farther_witness_does_not_replace_a_closer_one(plant) -> None:
    def far(_network, batch):
        claim = torch.zeros_like(batch.inputs)
        claim[:, :, ::2] = 1.0
        yield claim
        yield 1.0 - claim

    plant(far)
    network, inputs = linear(3), samples(4)
    alone = check(network, inputs, attacks=["planted"])
    nearest = check(network, inputs, attacks=["deepfool"])
    both = check(network, inputs, attacks=["deepfool", "planted"])
    assert [record.name for record in both.records] == ["deepfool", "planted"]
    assert len(alone.witnesses) == len(nearest.witnesses) == 4
    assert min(w.distance for w in alone.witnesses) > max(w.distance for w in nearest.witnesses)
    assert [w.distance for w in both.witnesses] == [w.distance for w in nearest.witnesses]
    assert {w.attack for w in both.witnesses} == {"deepfool"}


class Edge(nn.Module):
    """Two classes, told apart by the first entry of the input."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge = nn.Parameter(torch.tensor([[edge]]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        beyond = x.flatten(1)[:, :1] - self.edge
        return torch.cat([-beyond, beyond], 1)


@pytest.mark.parametrize("claimed", [0.6, 0.9])
def test_what_contradicts_a_radius_is_seen_where_the_network_as_it_runs_is_right(plant, claimed: float) -> None:
    """Its boundary lies a little behind the radius of 0.3, that of the exact function a little before it."""
    inputs = torch.full((1, 1, 2, 2), 0.3)

    def run(network, batch):
        del network
        claim = batch.inputs.clone()
        claim.flatten(1)[:, 0] = claimed
        yield claim

    plant(run)
    network, judge = Edge(0.6003), Edge(0.5997).double()
    evidence = check(network, inputs, torch.tensor([0]), judge=judge, radii=np.array([0.301 if claimed < 0.7 else 0.3]))
    assert [witness.distance for witness in evidence.witnesses] == [pytest.approx(0.2997, abs=1e-6)]
