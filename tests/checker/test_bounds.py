"""The checker on its own: its layer bounds, its logits, the numbers it computes with, and claims that are wrong."""

from __future__ import annotations

import copy
import json
import math
import random
from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch
from proofs import Proof, accepted, images, prove, remembering
from torch import nn

from lipaudit import checker
from lipaudit.checker import Step, bound_holds, cosine, norm_at_most, root_above
from lipaudit.proof import writer

TWISTS = ("--", "-+", "+-", "++")


def layer(seed: int) -> tuple[Step, torch.Tensor, list[Step]]:
    """A random convolution, its matrix in float64, and perhaps a batch norm after it (in the matrix as well)."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    groups = draw.choice([1, 1, 2])
    ins, outs = groups * draw.randint(1, 3), groups * draw.randint(1, 3)
    window = []
    for _ in range(2):
        k, s, d, p = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 2), draw.randint(0, 3)
        n = draw.randint(max(1, (1 if k == 1 else d * (k - 1) + 1) - 2 * p), 6)
        d = 1 if k == 1 else d
        window.append((n, k, s, p, d, (n + 2 * p - d * (k - 1) - 1) // s + 1))
    size, kernel, stride, padding, dilation, out = (list(axis) for axis in zip(*window, strict=True))
    weight = torch.randn(outs, ins // groups, *kernel, generator=generator) * 10.0 ** draw.randint(-3, 3)
    conv = nn.functional.conv2d
    eye = torch.eye(ins * math.prod(size), dtype=torch.float64).reshape(-1, ins, *size)
    whole = conv(eye, weight.double(), stride=stride, padding=padding, dilation=dilation, groups=groups)
    after = []
    if draw.random() < 0.5:
        gamma, variance = torch.randn(outs, generator=generator), torch.rand(outs, generator=generator) + 0.01
        whole = whole * (gamma.double() / (variance.double() + 1e-5).sqrt()).reshape(-1, 1, 1)
        values = {"weight": tuple(gamma.tolist()), "variance": tuple(variance.tolist()), "mean": None, "bias": None}
        shape = (outs, *out)
        after = [Step("bn", "batch_norm", ["conv"], shape, shape, [], {"eps": (1e-5).hex()}, values, 1)]
    values = {"weight": tuple(weight.flatten().tolist()), "bias": None}
    step = Step("conv", "conv2d", ["input"], (ins, *size), (outs, *out), window, {}, values, groups)
    return step, whole.flatten(1), after


@pytest.mark.parametrize("seed", range(60))
def test_no_bound_below_the_norm_is_proved(seed: int) -> None:
    step, matrix, after = layer(seed)
    norm = float(torch.linalg.svdvals(matrix)[0])
    if norm:  # else the kernel reads nothing but padding
        below = Fraction(norm * (1 - 1e-12))
        assert not any(bound_holds(step, after, below, hint) for hint in (*TWISTS, "dense"))
        # The matrix itself is proved as soon as there is room for rounding.
        assert bound_holds(step, after, Fraction(norm * (1 + 2.0**-31)), "dense")
    size = float(step_size(step, after))
    assert all(bound_holds(step, after, Fraction(size), hint) for hint in TWISTS)


def step_size(step: Step, after: list[Step]) -> float:
    """The norm of no torus is above the sum of all weights."""
    factors = 1.0 if not after else float(max(checker.squares(after[0]))) ** 0.5
    return sum(map(abs, step.values["weight"])) * factors * (1 + 2.0**-30)


def test_the_torus_of_zero_padding_is_not_the_circular_map() -> None:
    # [1, -1] with zero padding: 1.8019 for three pixels in the row, where the circular map has 1.7321.
    values = {"weight": (1.0, -1.0), "bias": None}
    window = [(1, 1, 1, 0, 1, 1), (3, 2, 1, 1, 1, 4)]
    step = Step("conv", "conv2d", ["input"], (1, 1, 3), (1, 1, 4), window, {}, values, 1)
    assert not any(bound_holds(step, [], Fraction(1.84), hint) for hint in (*TWISTS, "dense"))
    assert bound_holds(step, [], Fraction(1.85), "dense")


def test_layers_of_zeros_and_of_any_scale() -> None:
    for scale in (0.0, 1e-30, 1e30):
        values = {"weight": (3.0 * scale, 4.0 * scale), "bias": None}
        step = Step("linear", "linear", ["input"], (2,), (1,), [(1, 1, 1, 0, 1, 1)] * 2, {}, values, 1)
        norm = Fraction(5.0 * scale) or Fraction(2.0**-200)
        assert bound_holds(step, [], norm * (1 + Fraction(1, 2**31)), "dense")
        assert not scale or not bound_holds(step, [], norm * (1 - Fraction(1, 2**40)), "dense")


@pytest.mark.parametrize("seed", range(20))
def test_an_integer_matrix_has_no_norm_below_its_own(seed: int) -> None:
    draw = random.Random(seed)
    side, width = draw.randint(1, 6), draw.randint(1, 9)
    rows = []
    for _ in range(side):
        start = draw.randint(0, width - 1)
        rows.append((start, [draw.randint(-(2**40), 2**40) for _ in range(draw.randint(1, width - start))]))
    matrix = mpmath.zeros(side, width)
    for i, (start, row) in enumerate(rows):
        for j, entry in enumerate(row, start):
            matrix[i, j] = entry
    with mpmath.workdps(40):
        norm = max(mpmath.svd_r(matrix, compute_uv=False))
    assert not norm_at_most(rows, int(norm))
    assert norm_at_most(rows, int(norm * (1 + mpmath.mpf(2) ** -31)) + 1)


def test_cosines_and_roots_against_a_library() -> None:
    with mpmath.workdps(60):
        for turn in {Fraction(k, n) for n in (1, 2, 3, 8, 17, 66) for k in range(n)}:
            angle = 2 * mpmath.pi * turn.numerator / turn.denominator
            for found, exact in zip(cosine(turn), (mpmath.cos(angle), mpmath.sin(angle)), strict=True):
                assert abs(found - exact * 2**checker.PLACES) < 1.01
    draw = random.Random(0)
    drawn = [
        Fraction(draw.getrandbits(200), draw.getrandbits(90) + 1) / Fraction(2) ** draw.randint(-1800, 2100)
        for _ in range(99)
    ]
    tiny = [Fraction(k, 4**1075) for k in range(9)]  # below the least float, and between it and the next
    for square in (Fraction(2), Fraction(1, 4), Fraction(10**40), Fraction(3, 10**30), Fraction(0), *tiny, *drawn):
        root = root_above(square)
        assert Fraction(root) ** 2 >= square
        assert root == 0.0 or Fraction(math.nextafter(root, 0.0)) ** 2 < square


@mpmath.workdps(120)
def test_logits_contain_the_exact_ones(tmp_path: Any) -> None:
    claims, weights = prove(tmp_path, "everything", 3)
    network = checker.Network(claims, weights, lambda _: None)
    tensors = checker.read_tensors(claims["tensors"], weights)
    for sample, image in zip(claims["samples"], images(3), strict=True):
        exact = evaluated(claims, tensors, image.double().numpy().astype(object))
        state = {"input": (checker.fixed(tuple(image.flatten().tolist())), 1)}
        for step in network.steps:
            state[step.name] = checker.run(step, *zip(*(state[source] for source in step.inputs), strict=True))
        for name, values in exact.items():
            found, error = state[name]
            assert len(found) == values.size
            worst = max(abs(a - b * 2**checker.BITS) for a, b in zip(found, values.flatten(), strict=True))
            assert worst <= error
            assert error < 2 ** (checker.BITS - 110)
        assert [int(v, 16) for v in sample["logits"]] == state[network.steps[-1].name][0]


def evaluated(claims: Proof, tensors: Any, image: Any) -> dict[str, Any]:
    """Every activation with the digits of the caller, by loops that share nothing with the checker's."""
    import numpy as np

    number = np.vectorize(lambda v: mpmath.mpf(float(v)), otypes=[object])
    values = {"input": number(image)}
    for step in claims["steps"]:
        held = {
            key: None if name is None else number(np.array(tensors[name][1])).reshape(tensors[name][0])
            for key, name in step["tensors"].items()
        }
        settings, inputs = step["settings"], [values[source] for source in step["inputs"]]
        values[step["name"]] = OPERATIONS[step["op"]](inputs, settings, held)
    return {name: value for name, value in values.items() if name != "input"}


def _per_channel(x: Any, numbers: Any) -> Any:
    return numbers.reshape(-1, *(1,) * (x.ndim - 1))


def _normalise(inputs: Any, settings: Any, held: Any) -> Any:
    import numpy as np

    del held
    mean, std = (
        np.array([mpmath.mpf(float.fromhex(v)) for v in settings[key]], dtype=object) for key in ("mean", "std")
    )
    return (inputs[0] - _per_channel(inputs[0], mean)) / _per_channel(inputs[0], std)


def _batch_norm(inputs: Any, settings: Any, held: Any) -> Any:
    import numpy as np

    root = np.array([mpmath.sqrt(v + mpmath.mpf(float.fromhex(settings["eps"]))) for v in held["variance"]])
    y = (inputs[0] - _per_channel(inputs[0], held["mean"])) / _per_channel(inputs[0], root)
    y = y if held["weight"] is None else y * _per_channel(y, held["weight"])
    return y if held["bias"] is None else y + _per_channel(y, held["bias"])


def _conv(inputs: Any, settings: Any, held: Any) -> Any:
    import numpy as np

    (x,), weight, (p, q), (s, t), (d, e) = (
        inputs,
        held["weight"],
        *(settings[key] for key in ("padding", "stride", "dilation")),
    )
    outs, ins, k, m = weight.shape
    padded = np.full((x.shape[0], x.shape[1] + 2 * p, x.shape[2] + 2 * q), mpmath.mpf(0), dtype=object)
    padded[:, p : p + x.shape[1], q : q + x.shape[2]] = x
    size = [(padded.shape[1] - d * (k - 1) - 1) // s + 1, (padded.shape[2] - e * (m - 1) - 1) // t + 1]
    result = np.empty((outs, *size), dtype=object)
    for o, i, j in np.ndindex(*result.shape):
        first = o // (outs // settings["groups"]) * ins
        seen = padded[first : first + ins, s * i : s * i + d * (k - 1) + 1 : d, t * j : t * j + e * (m - 1) + 1 : e]
        result[o, i, j] = (seen * weight[o]).sum() + (0 if held["bias"] is None else held["bias"][o])
    return result


def _pool(inputs: Any, settings: Any, largest: bool) -> Any:
    import numpy as np

    (k, m), (s, t), (p, q) = settings["kernel"], settings["stride"], settings.get("padding", (0, 0))
    x = np.pad(inputs[0], ((0, 0), (p, p), (q, q)), constant_values=mpmath.mpf("-1e99") if largest else 0)
    size = (x.shape[1] - k) // s + 1, (x.shape[2] - m) // t + 1
    result = np.empty((x.shape[0], *size), dtype=object)
    for c, i, j in np.ndindex(*result.shape):
        seen = x[c, s * i : s * i + k, t * j : t * j + m]
        result[c, i, j] = seen.max() if largest else seen.sum() / seen.size
    return result


def _sorted(inputs: Any, settings: Any, held: Any) -> Any:
    import numpy as np

    del held
    x = inputs[0]
    return np.sort(x.reshape(-1, settings["size"], *x.shape[1:]), axis=1).reshape(x.shape)


def _padded(inputs: Any, settings: Any, held: Any) -> Any:
    import numpy as np

    del held
    return np.pad(inputs[0], ((settings["before"], settings["after"]), (0, 0), (0, 0)), constant_values=mpmath.mpf(0))


def _leaky(inputs: Any, settings: Any, held: Any) -> Any:
    import numpy as np

    del held
    slope = mpmath.mpf(float.fromhex(settings.get("slope", "0x0.0p+0")))
    return np.vectorize(lambda v: v if v > 0 else v * slope, otypes=[object])(inputs[0])


OPERATIONS: dict[str, Any] = {
    "normalise": _normalise,
    "batch_norm": _batch_norm,
    "conv2d": _conv,
    "linear": lambda inputs, _, held: held["weight"] @ inputs[0] + (0 if held["bias"] is None else held["bias"]),
    "relu": _leaky,
    "leaky_relu": _leaky,
    "group_sort": _sorted,
    "add": lambda inputs, *_: inputs[0] + inputs[1],
    "max_pool": lambda inputs, settings, _: _pool(inputs, settings, True),
    "avg_pool": lambda inputs, settings, _: _pool(inputs, settings, False),
    "pad_channels": _padded,
    "flatten": lambda inputs, *_: inputs[0].flatten(),
}


def test_every_operation_of_the_checker_is_in_the_network_of_the_tests(tmp_path: Any) -> None:
    claims, _ = prove(tmp_path, "everything", 1)
    assert {step["op"] for step in claims["steps"]} == set(checker.OPS) == set(OPERATIONS)


@pytest.mark.parametrize("lie", ["square", "missing", "halved", "forgotten branch", "sqrt of the pool"])
def test_wrong_bounds_are_not_confirmed(lie: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    claims, weights = prove(tmp_path, "everything", 1)
    remembering(monkeypatch)
    claims = copy.deepcopy(claims)
    bounds = claims["bounds"]
    ends = {bound["steps"][-1]: bound for bound in bounds}
    pool = next(ends[step["name"]] for step in claims["steps"] if step["op"] == "max_pool")
    if lie == "missing":
        bounds.pop(1)
    elif lie == "forgotten branch":
        add = next(step for step in claims["steps"] if step["op"] == "add")
        add["inputs"] = add["inputs"][:1]
    else:
        victim, wrong = {
            "square": (bounds[-1], lambda b: b * b if b < 1 else math.sqrt(b)),
            "halved": (bounds[0], lambda b: b / 2),
            "sqrt of the pool": (pool, lambda _: 1.0),
        }[lie]
        victim["bound"] = shortened(wrong(float.fromhex(victim["bound"]))).hex()
    # The liar derives all that follows from the lie with the checker's own arithmetic.
    with monkeypatch.context() as patch:
        patch.setattr(checker, "bound_holds", lambda *_: True)
        try:
            network = checker.Network(claims, weights, lambda _: None)
            claims["pairwise"] = network.pairwise
            claims["samples"] = [{"number": 0, **network.sample(claims["samples"][0])}]
            assert accepted(claims, weights)
        except (checker.Rejected, KeyError):
            assert lie in ("missing", "forgotten branch")
    assert not accepted(claims, weights)


def test_a_bound_of_a_sum_leaves_no_branch_out(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    claims, weights = prove(tmp_path, "everything", 1)
    remembering(monkeypatch)
    names = [step["name"] for step in claims["steps"]]
    add = next(step["name"] for step in claims["steps"] if step["op"] == "add")
    place = sum(names.index(bound["steps"][-1]) < names.index(add) for bound in claims["bounds"])
    true = checker.Network(claims, weights, lambda _: None).pairwise
    claims["bounds"].insert(place, {"steps": [add], "bound": (1.0).hex(), "hint": "factors"})
    assert checker.Network(claims, weights, lambda _: None).pairwise == true


@pytest.mark.parametrize("size", [0, -1, 2.0])
def test_groups_of_no_entries_are_refused(size: Any) -> None:
    item = {"name": "sort", "op": "group_sort", "inputs": ["input"], "settings": {"size": size}, "tensors": {}}
    with pytest.raises(checker.Rejected, match="size"):
        checker.read_step(item, {"input": (1,)}, {})


def shortened(x: float) -> float:
    mantissa, exponent = math.frexp(x)
    return math.ldexp(math.floor(math.ldexp(mantissa, checker.DIGITS)), exponent - checker.DIGITS)


def test_a_last_layer_of_tiny_weights_takes_no_longer(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double().eval()
    with torch.no_grad():
        model[1].weight.mul_(1e-170)
    written = writer.write_proof(tmp_path / "p.json", model, torch.rand(1, 1, 2, 2, dtype=torch.float64), [0])
    assert accepted(json.loads(written.file.read_bytes()), written.checkpoint.read_bytes())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda claims: {**claims, "samples": [], "count": 0}, "samples: one or more"),
        (
            lambda claims: {**claims, "samples": [{**claims["samples"][0], "report_radius": "0x1.0p+3"}]},
            "names of fields",
        ),
        (lambda claims: {**claims, "steps": 7}, "wrong kind"),
        (lambda claims: [claims], "wrong kind|names of fields"),
    ],
)
def test_what_is_no_proof_of_a_sample_is_refused_in_one_line(change: Any, says: str, tmp_path: Any) -> None:
    claims, weights = prove(tmp_path, "everything", 1)
    with pytest.raises(checker.Rejected, match=says) as refused:
        checker.check(change(claims), weights, say=lambda _: None)
    assert "\n" not in str(refused.value)


def test_no_samples_were_asked_for(tmp_path: Any) -> None:
    claims, weights = prove(tmp_path, "everything", 1)
    with pytest.raises(checker.Rejected, match="one or more"):
        checker.check(claims, weights, 0, say=lambda _: None)
