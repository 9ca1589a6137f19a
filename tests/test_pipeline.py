"""The whole audit on a small network: everything agrees, and planted lies are found; here and on a cluster."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from clusters import cluster
from torch import nn

import lipaudit
from lipaudit.certification.exact_network import ExactNetwork
from lipaudit.certification.network_bound import compose
from lipaudit.engines import audit_in_shards
from lipaudit.errors import BadThreat
from lipaudit.results.bounds import NetworkBound
from lipaudit.results.json import from_json
from lipaudit.results.threat import threats_of
from lipaudit.runs import audit as pipeline
from lipaudit.runs import planning
from lipaudit.runs.planning import plan_run
from lipaudit.verdict.comparison import compare

__all__ = ["cluster"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return model.eval()


@pytest.fixture(scope="module")
def data(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    labels = network(x).argmax(1)
    labels[0] = (labels[0] + 1) % 3  # one mistake
    return x, labels


Run = Callable[..., lipaudit.results.audit.Audit]
ELSEWHERE = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours


PARAMS = ["here", pytest.param("local radii", marks=pytest.mark.slow), pytest.param("on two workers", marks=ELSEWHERE)]


@pytest.fixture(scope="module", params=PARAMS)
def run(request: pytest.FixtureRequest) -> Run:
    """The whole audit, in this process, without and with local radii, or in two shards on a Ray cluster."""
    if request.param == "here":
        return functools.partial(lipaudit.audit, local="off")
    if request.param == "local radii":
        return lipaudit.audit
    request.getfixturevalue("cluster")
    return functools.partial(audit_in_shards, shards=2, engine="ray")


@pytest.fixture(scope="module")
def audit(run: Run, network: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> lipaudit.results.audit.Audit:
    return run(network, *data, eps=("1/255", 0.1), attacks=("deepfool", "pgd-at-radius"))


def test_everything_agrees(audit: lipaudit.results.audit.Audit) -> None:
    assert audit.verdict.integrity == "SOUND"
    assert audit.clean_accuracy == 11 / 12
    assert audit.samples.radius[0] == 0.0
    assert not audit.samples.attacked[0]
    for radius, distance in zip(audit.samples.radius, audit.samples.distance, strict=True):
        assert distance is None or radius < distance
    assert audit.slope <= audit.bound.largest_pairwise
    assert audit.slope_share <= 1
    for eps in (0.001, 0.01, 0.1, 1.0):
        assert audit.certified_accuracy(eps) <= audit.empirical_robust_accuracy(eps) <= audit.clean_accuracy
    assert [rate.eps for rate in audit.certified] == ["1/255", "0.1"]


def test_json_and_html_come_out(audit: lipaudit.results.audit.Audit, tmp_path) -> None:
    file = tmp_path / "result.json"
    file.write_text(audit.to_json(), encoding="utf-8")
    again = lipaudit.load_audit(file)

    assert again.samples.radius == audit.samples.radius
    assert again.to_html() == audit.to_html()
    assert audit.verdict.headline in audit.to_html()


def test_the_same_seed_gives_the_same_audit(run, network, data, audit) -> None:
    again = run(network, *data, eps=("1/255", 0.1), attacks=("deepfool", "pgd-at-radius"))
    assert again.samples == audit.samples
    assert again.bound.pairwise == audit.bound.pairwise


def test_the_model_is_left_alone(run, network, data) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run(network, *data, attacks="none")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_a_planted_wrong_bound_is_found(network, data, monkeypatch) -> None:
    """Every pairwise bound fifty times too small: radii reach beyond the attacks, and slopes beyond the bounds."""
    honest = pipeline.compose

    def lying(*args, **kwargs):
        composition = honest(*args, **kwargs)
        pairwise = tuple(tuple(value / 50 for value in row) for row in composition.network.pairwise)
        return replace(composition, network=replace(composition.network, pairwise=pairwise))

    monkeypatch.setattr(pipeline, "compose", lying)
    result = lipaudit.audit(network, *data, attacks=("deepfool",))

    assert (result.verdict.integrity, result.exit_code, result.status) == ("INVALID", 4, "invalid")
    assert result.certified == ()
    states = {finding.id: finding.state for finding in result.findings}
    assert states["LA001"] == states["LA002"] == "fail"


def test_a_forgotten_normalisation_is_found(network, data, monkeypatch) -> None:
    """Radii in normalised units are too large by 1 / std: attacks in raw units contradict them."""
    mean, std = (0.5,), (0.02,)
    honest = pipeline.compose

    def forgetful(module, *args, **kwargs):
        composition = honest(module, *args, **kwargs)
        inner: NetworkBound = honest(module.network, *args, **kwargs).network
        return replace(composition, network=replace(composition.network, pairwise=inner.pairwise))

    monkeypatch.setattr(pipeline, "compose", forgetful)
    labels = network((data[0] - 0.5) / 0.02).argmax(1)
    result = lipaudit.audit(network, data[0], labels, mean=mean, std=std, attacks=("deepfool",))
    assert result.verdict.integrity == "INVALID"


def test_names_and_numpy_arrays_are_accepted(run, data) -> None:
    x, _ = data
    flat = nn.Sequential(nn.Linear(36, 2)).eval()
    images = x.numpy().reshape(12, 36)
    with torch.no_grad():
        labels = np.eye(2, dtype=np.int64)[flat(torch.tensor(images)).argmax(1).numpy()]
    result = run(flat, images, labels, attacks="none")
    assert result.clean_accuracy == 1.0
    assert result.empirical == ()
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x * 255, r"\[0, 1\], got values .* divide them by 255"),
        (lambda x: x - 0.5, r"\[0, 1\], got values .* undo the normalisation"),
        (lambda x: x * float("nan"), "finite inputs"),
    ],
)
def test_unfit_inputs(run, network, data, change, reason) -> None:
    with pytest.raises(BadThreat, match=reason):
        run(network, change(data[0]), data[1])


@pytest.mark.parametrize("eps", [(), (0,), ("x",), ("1/0",), (-1,)])
def test_unfit_budgets(run, network, data, eps) -> None:
    with pytest.raises(BadThreat, match="eps"):
        run(network, *data, eps=eps)


def test_labels_of_another_data_set(run, network, data) -> None:
    with pytest.raises(BadThreat, match="labels from 0 to 2, got 0 to 9"):
        run(network, data[0], torch.tensor([9] + [0] * 11))


def test_the_judge_is_the_function_that_was_certified() -> None:
    """A parametrised weight cast to float64 would be recomputed; the judge keeps the one that runs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 3))).eval()
    judge = ExactNetwork(compose(model, (20,)))
    x = torch.rand(2, 20, dtype=torch.float64)
    weight, bias = model[0].weight.detach().double(), model[0].bias.detach().double()

    torch.testing.assert_close(judge(x), x @ weight.T + bias, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("together", [1, 3, 100])
def test_the_judge_says_the_same_of_many_as_of_one(network, data, together: int) -> None:
    judge = ExactNetwork(compose(network, (1, 6, 6)))
    assert judge.together >= 12
    judge.together = together
    x = data[0].double()
    alone = torch.cat([judge(x[row : row + 1]) for row in range(12)])

    torch.testing.assert_close(judge(x), alone, rtol=1e-13, atol=1e-13)
    assert judge.together == together
    assert judge(x[:1]).equal(alone[:1])


@pytest.mark.parametrize("fault", ["unknown", "wrong"])
def test_a_judge_that_cannot_take_many_takes_one_by_one(network, data, monkeypatch, fault: str) -> None:
    def vmap(function):
        def mapped(x):
            if fault == "unknown":
                raise RuntimeError("no batching rule")
            return torch.stack([function(sample) for sample in x]) + 1e-3

        return mapped

    judge = ExactNetwork(compose(network, (1, 6, 6)))
    x = data[0].double()
    expected = torch.cat([judge(x[row : row + 1]) for row in range(12)])
    monkeypatch.setattr(torch, "vmap", vmap)

    assert judge(x).equal(expected)
    assert judge.together == 1


@pytest.mark.parametrize(
    ("samples", "attacks", "budget", "expected"),
    [
        (None, None, 1e9, (500, "standard")),
        (None, None, 2100, (200, "standard")),
        (None, None, 600, (500, "quick")),
        (None, None, 30, (16, "quick")),
        (None, None, 1e-9, (16, "quick")),
        (64, None, 700, (64, "standard")),
        (64, None, 300, (64, "quick")),
        (700, ("deepfool",), 1e-9, (700, "deepfool")),
        (None, (), 1e-9, (500, "none")),
    ],
)
def test_plan_takes_the_most_that_fits_and_never_changes_a_choice(
    network, data, monkeypatch, samples, attacks, budget, expected
) -> None:
    seconds = {"standard": 10.0, "quick": 1.0, "deepfool": 1.0, "none": 0.0}
    monkeypatch.setattr(
        planning, "estimate_seconds", lambda *_, attacks, samples, **__: {"x": seconds[attacks[0]] * samples}
    )
    for norms in (("linf",), ("linf", "l2")):
        threats, time = threats_of(None, norms), budget * len(norms)
        plan = plan_run(
            network, data[0], samples=samples, attacks=attacks, budget=time, classes=3, threats=threats, available=1000
        )
        assert (plan.samples, plan.attacks) == expected


def test_a_time_limit_leaves_an_incomplete_audit_that_says_so(run, network, data) -> None:
    result = run(network, *data, attacks=("fab-t",), time_limit=1e-9)

    assert (result.status, result.exit_code, result.verdict.integrity) == ("partial", 5, "SOUND")
    assert "time limit reached" in result.attacks[0].why
    assert result.verdict.headline.startswith("Incomplete: fab-t")


def test_every_audit_records_its_settings_and_says_who_it_is_in_five_lines() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    given = {"attacks": "none", "eps": "0.5", "gates": "clean_accuracy>=0.5", "seed": 3}
    made = lipaudit.audit(model, x, model(x).argmax(1), **given, mean=(0.5,), std=(0.25,))
    other = lipaudit.audit(model, x, model(x).argmax(1), **given, mean=(0.5,), std=(0.25,), local="off")
    assert made.config == {
        "eps": ["0.5"], "norm": ["l2"],
        "domain": [0.0, 1.0], "attacks": ["none"], "norms": "all", "global_method": "best",
        "arithmetic": "real", "local": "auto", "local_samples": None, "seed": 3, "device": "cpu", "time_limit": None,
        "batch_size": None, "samples": 6,
        "mean": [0.5], "std": [0.25], "claimed_lipschitz": None, "smoothing": None, "clever": False,
        "gates": ["clean_accuracy>=0.5"],
        "shard": None,
    }  # fmt: skip
    assert from_json(made.to_json()).config == made.config
    notes = compare(made, other).notes
    assert "local auto → off: another effort at proving" in notes
    assert [gate.expression for gate in made.gates] == ["clean_accuracy>=0.5"]
    assert made.certified_accuracy("1/2") == made.certified_accuracy(0.5) == made.certified[0].value
    assert len(repr(made).splitlines()) == 5
    assert made.run in repr(made)
    certificates = lipaudit.certify(model, x)
    for large in (made.samples, made.bound, certificates):
        assert len(repr(large)) < 120
        assert type(large).__name__ in repr(large)
