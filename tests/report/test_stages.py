"""The ledger in few rows: factors that multiply up to the network bound."""

from __future__ import annotations

import math
import random

import audits
import pytest
from audit_parts import chain_ledger, line, network, resnet_ledger

from lipaudit.report.bound_section import layer_name
from lipaudit.report.figures.layer_groups import MOST, block, stages
from lipaudit.report.figures.waterfall import all_nearly_one
from lipaudit.results.bounds import LayerBound, NetworkBound, Upper


def join(name: str, ends: tuple[LayerBound, ...]) -> LayerBound:
    total = math.log10(sum(10**end.log10_so_far for end in ends))
    steps = tuple(end.step for end in ends)
    return LayerBound(name, "cat", Upper(1.0, "sum"), "sum", steps, f"{name}/cat", total, (8,))


@pytest.mark.parametrize("name", audits.ALL)
def test_gains_add_up_to_the_network_bound(name: str) -> None:
    bound = audits.ALL[name]().bound
    if bound is None:
        return
    rows = stages(bound)
    assert sum(row.gain for row in rows) == pytest.approx(bound.log10, abs=1e-9)
    assert len(rows) <= MOST + 1
    assert sum(len(row.lines) for row in rows) == len(bound.layers)


def test_residual_blocks_are_one_row_each_and_steps_of_factor_one_none() -> None:
    names = [row.name for row in stages(network(resnet_ledger(random.Random(5))))]
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert names == ["normalise", "conv1", *blocks, "avgpool", "fc"]


def test_parallel_branches_are_never_cut() -> None:
    stem = line("stem", "conv2d", 2.0, ("input",), 0.0)
    left = line("mixed.left", "conv2d", 3.0, (stem.step,), stem.log10_so_far)
    right = line("mixed.right", "conv2d", 5.0, (stem.step,), stem.log10_so_far)
    both = join("mixed", (left, right))
    rows = stages(network((stem, left, right, both), 2))
    assert [row.name for row in rows] == ["stem", "mixed"]
    assert 10 ** rows[1].gain == pytest.approx(8.0)


def test_branches_without_a_module_around_them_are_named_by_their_ends() -> None:
    one = line("first", "conv2d", 3.0, ("input",), 0.0)
    two = line("second", "conv2d", 3.0, ("input",), 0.0)
    rows = stages(network((one, two, join("add", (one, two))), 2))
    assert [row.name for row in rows] == ["first … add"]


def test_a_bound_below_its_last_line_gets_a_row_of_its_own() -> None:
    ledger = chain_ledger([("a", "conv2d", 4.0), ("b", "conv2d", 5.0)])
    rows = stages(NetworkBound(ledger, 1.0, (), (3,)))
    assert [row.name for row in rows] == ["a", "b", "whole network"]
    assert 10 ** rows[-1].gain == pytest.approx(0.5)


def test_a_constant_network_has_no_rows() -> None:
    ledger = chain_ledger([("a", "conv2d", 4.0)])
    assert stages(NetworkBound(ledger, -math.inf, (), (3,))) == ()
    assert stages(NetworkBound((), 0.0, (), (3,))) == ()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("conv1 + bn1", "conv1"),
        ("layer1.0.conv1 + layer1.0.bn1", "layer1.0"),
        ("layer2.0.downsample.0 + layer2.0.downsample.1", "layer2.0"),
        ("features.3", "features.3"),
        ("stages.0.blocks.1.conv_dw", "stages.0.blocks.1"),
        ("blocks.3.attn.qkv", "blocks.3"),
    ],
)
def test_blocks(name: str, shown: str) -> None:
    assert block(name) == shown


def test_layer_names_say_their_module_once() -> None:
    assert layer_name("layer1.0.conv1 + layer1.0.bn1") == "layer1.0.conv1 + bn1"
    assert layer_name("layer2.0.downsample.0 + layer2.0.downsample.1") == "layer2.0.downsample.0 + downsample.1"
    assert layer_name("conv1 + bn1") == "conv1 + bn1"


def test_only_the_flat_network_needs_no_waterfall() -> None:
    flat, strong = audits.flat().bound, audits.strong().bound
    assert flat is not None
    assert strong is not None
    assert all_nearly_one(stages(flat))
    assert not all_nearly_one(stages(strong))
