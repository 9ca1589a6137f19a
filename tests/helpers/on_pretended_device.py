"""On a device that does not exist: nothing mixes devices, bounds and radii are those of the CPU, kernels are few.

`tests/test_device.py` runs this file in a process of its own: a backend of torch cannot be unregistered, and torch then
takes it for the accelerator of the machine.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pretend_device
import pytest
import samples
import torch
from torch import nn
from torch.utils._pytree import tree_map

import lipaudit
from lipaudit.certification import network_bound
from lipaudit.certification.certificates import Certificates, certify_with
from lipaudit.domains.graph import Graph, evaluate
from lipaudit.results.bounds import Arithmetic

CLOSE = 1e-9
ARITHMETICS: tuple[Arithmetic, ...] = ("native", "float64")  # beside the real one


class Evaluated(nn.Module):
    """A graph as a model: the sample networks keep constants in closures, which `to` does not reach."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        super().__init__()
        self.graph = replace(graph, nodes=tuple(replace(n, args=_moved(n.args, device)) for n in graph.nodes))
        self.register_buffer("here", torch.zeros(1, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([evaluate(self.graph, image) for image in x])


def _moved(arguments: Any, device: torch.device) -> Any:
    return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, arguments)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def test_bounds_and_radii_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(), torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = _certified(net, x)
    with pretend_device.pretend() as watch:
        there, images = network().to(watch.device), x.to(watch.device)
        short = _certified(there, images).others["native"].why_not
        assert "set torch.backends.cudnn.allow_tf32 = False" in short
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        got = _certified(there, images)
    assert watch.now.launches > 1000  # it was there that it was computed
    pairs = [(got.radius, expected.radius)]
    pairs += [(got.others[arithmetic].radius, expected.others[arithmetic].radius) for arithmetic in ARITHMETICS]
    for radii, on_cpu in pairs:
        assert radii == pytest.approx(on_cpu, rel=CLOSE)
        assert (radii > 0).all()


def _certified(net: nn.Module, x: torch.Tensor) -> Certificates:
    composition = network_bound.compose(net, tuple(x.shape[1:]), domain=(0.0, 1.0), global_method="product")
    return certify_with(composition, x, arithmetics=ARITHMETICS)


@pytest.mark.parametrize(
    ("method", "launches", "waits"),
    [("torus", 400, 12), ("gram", 500, 18), ("riesz-grid", 440, 14), ("lipgrid", 300, 10), ("schur", 30, 5),
     ("aol", 1000, 11)],
)  # fmt: skip
def test_the_norm_of_a_layer_takes_few_kernels(method: str, launches: int, waits: int) -> None:
    weight = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(0)) / 24
    expected = lipaudit.conv_norm(weight, input_size=(16, 16), padding=1, method=method)
    with pretend_device.pretend() as watch:
        there = weight.to(watch.device)
        watch.stage = method
        got = lipaudit.conv_norm(there, input_size=(16, 16), padding=1, method=method)
    assert float(got) == pytest.approx(float(expected), rel=CLOSE)
    assert watch.now.launches <= launches
    assert watch.now.waits <= waits, watch.now.places.most_common(10)


ALL = [op for op in samples.NETWORKS if op != "lstm.input"]
"""Its kernel has no form for CPUs."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same'")  # what torch says once a process
@pytest.mark.parametrize("op", ALL if os.environ.get("LIPAUDIT_EVERY_RULE") else ALL[::3])
def test_every_rule(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of them; every one with LIPAUDIT_EVERY_RULE=1."""
    expected = samples.composed(op)[1]
    x = torch.rand(1, *expected.graph.input_shape, generator=torch.Generator().manual_seed(0))
    with pretend_device.pretend() as watch:
        there = Evaluated(expected.graph, watch.device)
        monkeypatch.setattr(network_bound, "capture", lambda *_, **__: there.graph)
        got = network_bound.compose(there, expected.graph.input_shape, domain=(0.0, 1.0), global_method="product")
        certify_with(got, x.to(watch.device), arithmetics=ARITHMETICS)
        if op in ALL[::9]:
            lipaudit.certify(there, x.to(watch.device), domain=(0, 1), local="on")
    for mine, its in zip(got.product, expected.product, strict=True):
        assert list(mine) == pytest.approx(list(its), rel=CLOSE)
