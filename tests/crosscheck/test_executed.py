"""The boundary of the network as executed is found from witnesses, and a witness in its own dtype refutes F."""

from __future__ import annotations

from dataclasses import replace

import audits
import numpy as np
import pytest
import torch
from crosscheck_nets import exact_distances, labelled, linear, samples

from lipaudit.crosscheck import cross_check, executed_distances
from lipaudit.crosscheck.native_boundary import changed, first_flips
from lipaudit.verdict.checks.integrity import no_arithmetic_broken
from lipaudit.verdict.verdict import examine


def test_executed_distances_of_a_linear_network_are_its_own() -> None:
    network = linear(5)
    inputs = samples(8)
    labels = labelled(network, inputs)
    evidence = cross_check(network, inputs, labels, attacks=["deepfool"], eps=[], radii=None)
    found = executed_distances(network, inputs, labels.tolist(), evidence)
    seen = [witness.sample for witness in evidence.witnesses]
    assert seen
    assert [row for row, distance in enumerate(found) if distance is not None] == seen
    exact = exact_distances(network, inputs, labels)
    assert np.array([found[row] for row in seen]) == pytest.approx(exact[seen], rel=0.01)
    worth = [row in seen[1:] for row in range(8)]
    some = executed_distances(network, inputs, labels.tolist(), evidence, worth)
    assert [row for row, distance in enumerate(some) if distance is not None] == seen[1:]
    nobody = replace(evidence, witnesses=())
    assert executed_distances(network, inputs, labels.tolist(), nobody) == (None,) * 8


def test_bisection_ends_at_a_point_that_is_executed_wrongly() -> None:
    network = linear(3).half()
    inputs = samples(12).half()
    labels = network(inputs).argmax(1)
    ends = inputs.roll(1, 0).double()
    flips = first_flips(network, inputs.double(), ends, labels)
    assert any(flip is not None for flip in flips)
    for row, flip in enumerate(flips):
        there = bool(changed(network, ends[row : row + 1], labels[row : row + 1]))
        assert (flip is not None) == there
        if flip is not None:
            assert bool(changed(network, flip[None], labels[row : row + 1]))
            nearer = inputs[row].double() + 0.99 * (flip - inputs[row].double())
            assert not bool(changed(network, nearer[None], labels[row : row + 1]))


def test_a_clean_input_that_is_executed_wrongly_is_found_whatever_the_end_is() -> None:
    network, inputs = linear(3), samples(1).double()
    label = network(inputs.float()).argmax(1)
    others = samples(20).double()
    wrong = next(other[None] for other in others if bool(changed(network, other[None], label)))
    (flip,) = first_flips(network, wrong, inputs, label)
    assert flip is not None
    assert torch.equal(flip, wrong[0])


def test_a_tie_is_another_answer() -> None:
    network = linear(2)
    with torch.no_grad():
        network[-1].weight[1] = network[-1].weight[0]
        network[-1].bias[:] = 0.0
    assert changed(network, samples(3).double(), torch.zeros(3, dtype=torch.int64)).all()


@pytest.mark.parametrize("arithmetic", ["real", "native", "float64"])
def test_an_adversarial_example_within_a_radius_refutes_its_promise(arithmetic: str) -> None:
    audit = audits.strong()
    whole = [replace(found, radius=found.radius or audit.samples.radius, why_not="") for found in audit.arithmetics]
    audit = replace(audit, arithmetics=tuple(whole))
    finding = no_arithmetic_broken(audit)
    assert finding is not None
    assert finding.state == "pass"
    row = next(k for k, distance in enumerate(audit.samples.distance) if distance is not None)
    lies = [
        replace(found, radius=(*found.radius[:row], 9.0, *found.radius[row + 1 :]))
        if found.arithmetic == arithmetic
        else found
        for found in whole
    ]
    _, verdict, code = examine(replace(audit, arithmetics=tuple(lies)))
    assert (verdict.integrity, code) == ("INVALID", 4)
    assert f"a radius certified for {arithmetic} arithmetic" in verdict.headline


def test_a_witness_in_the_own_dtype_refutes_f_alone() -> None:
    audit = audits.strong()
    row = next(k for k, distance in enumerate(audit.samples.distance) if distance is not None)
    nearer = list(audit.samples.native_distance)
    nearer[row] = 0.5 * audit.arithmetics[1].radius[row]
    finding = no_arithmetic_broken(replace(audit, samples=replace(audit.samples, native_distance=tuple(nearer))))
    assert finding is not None
    assert (finding.state, finding.value) == ("fail", "native")
