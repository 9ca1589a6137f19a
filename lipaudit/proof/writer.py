"""Proof files: all that somebody needs to derive the global radii of an audit again, without lipaudit.

`write_proof` lists the network step by step, claims a bound of every linear step and says where its proof is to be
found; the checker (`checker.py`) proves each of them its own way and derives the pairwise bounds, the logits and the
radii, and what it derives is what the file says: there is nothing in it that the checker does not derive. A radius may
be a little smaller than the report's; `Written.below` says by how much.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lipaudit import checker
from lipaudit.certification.certificates import certify_with
from lipaudit.certification.inputs import check_inputs, check_labels
from lipaudit.certification.network_bound import Composition, compose
from lipaudit.errors import LipauditError, UnsupportedOp
from lipaudit.files.atomic import replacing
from lipaudit.graph.capture import capture
from lipaudit.norms.linear_maps import Conv
from lipaudit.norms.symbol import Symbols
from lipaudit.norms.torus import best_class, torus
from lipaudit.progress import Progress, Silent
from lipaudit.proof.steps import Listed, listing

SLACK = 2.0**-31
"""How much a claim is above the norm that was found, relatively: room for the checker's own proof."""

DENSE_SIDE, DENSE_WORK = 1100, 3e8
"""Whole matrices of maps up to that side, and up to so many products in the checker's proof."""

MOST_WORK = 5e10
"""Products in one layer's proof, at some 50 ns each; beyond, no proof is written."""


@dataclass(frozen=True)
class Written:
    """What became of a proof."""

    file: Path
    checkpoint: Path
    """The safetensors file that it is about."""
    samples: int
    certified: int
    """With a radius above zero."""
    below: float
    """By how much a radius is below that of the product of layer bounds, relatively, at most."""
    computed: tuple[str, ...]
    """Steps with tensors that no checkpoint holds: the checkpoint was written beside the proof."""

    def __str__(self) -> str:
        about = f"about {self.checkpoint.name}"
        if self.computed:
            about += f", written beside it: {', '.join(self.computed[:3])}{', …' if len(self.computed) > 3 else ''}"
        return (
            f"proof {self.file}: {self.certified} of {self.samples} radii, at most {100 * max(0.0, self.below):.2g} % "
            f"below those of the product of layer bounds, which it proves; {about}"
        )


def write_proof(
    file: str | Path,
    model: nn.Module,
    images: torch.Tensor,
    labels: Sequence[int] | torch.Tensor,
    *,
    checkpoint: str | Path | None = None,
    composition: Composition | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write the proof of the global radii of `images` (n, c, h, w) with `labels`, for `model` in eval mode.

    `checkpoint` is a safetensors file with the network's tensors, by whatever names. If it is not given or lacks some
    (weights that the network computes before it runs, such as almost-orthogonal ones), the tensors that run are written
    beside the proof, as FILE.safetensors, and the proof is about that file.
    Raises `UnsupportedOp` for a network with steps that the checker has no rule for.
    """
    file = Path(file)
    points = check_inputs(images)
    composition = composition or compose(model, tuple(points.shape[1:]), global_method="product")
    steps = listing(composition.graph)
    answers = check_labels(labels, len(points), len(composition.network.pairwise))
    source, names, missing = _weights(steps, file, None if checkpoint is None else Path(checkpoint))
    data = source.read_bytes()
    kind = "F64" if points.dtype == torch.float64 else "F32"
    proof: dict[str, Any] = {
        **dict(zip(("format", "promise"), checker.HEAD, strict=True)),
        "checkpoint_sha256": hashlib.sha256(data).hexdigest(),
        "input": {"shape": list(points.shape[1:]), "dtype": kind},
        "tensors": _claims(steps, names),
        "steps": [_as_json(step, names) for step in steps],
        "bounds": [_bound(chain) for chain in _chains(steps)],
    }
    progress = progress or Silent()
    progress.start("proof", len(proof["bounds"]) + len(points))
    try:
        network = checker.Network(proof, data, lambda claim: progress.advance(1, claim))
        proof["pairwise"] = network.pairwise
        # The checker multiplies bounds of layers; what several layers are together it does not know.
        product = replace(composition, network=replace(composition.network, pairwise=composition.product))
        reports = certify_with(product, points, answers).radius.tolist()
        proof["samples"] = []
        for k, (point, label) in enumerate(zip(points, answers, strict=True)):
            known = {"image": base64.b64encode(_raw(point)).decode(), "label": label}
            proof["samples"].append({"number": k, **network.sample(known)})
            progress.advance(1, f"sample {k}")
    except checker.Rejected as error:
        raise LipauditError(f"proof: the checker does not confirm what lipaudit proved: {error}") from error
    proof["count"] = len(points)
    with replacing(file) as partial:
        partial.write_text(json.dumps(proof, indent=1), encoding="utf-8")
    progress.finish(f"written to {file.name}")
    radii = [float.fromhex(sample["radius"]) for sample in proof["samples"]]
    below = max(1 - radius / report if report else -radius for radius, report in zip(radii, reports, strict=True))
    return Written(file, source, len(points), sum(radius > 0 for radius in radii), below, missing)


def refuse_unlisted(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Raise `UnsupportedOp` for a network of which no proof can be written: before an audit of hours, not after it."""
    listing(capture(model, tuple(input_shape)))


def _raw(tensor: torch.Tensor) -> bytes:
    """Little-endian bytes, contiguous."""
    array = tensor.detach().cpu().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


# Tensors -------------------------------------------------------------------------------------------------------------

_Names = dict[tuple[str, str], str]
"""Step and argument: the name of the tensor in the checkpoint."""

_SPOKEN = {"mean": "running_mean", "variance": "running_var"}


def _weights(steps: Sequence[Listed], file: Path, given: Path | None) -> tuple[Path, _Names, tuple[str, ...]]:
    """The safetensors file that holds every tensor of the network, and their names there; which were not in `given`."""
    from safetensors.torch import save_file

    used = {(step.name, key): t for step in steps for key, t in step.tensors.items() if t is not None}
    for (name, key), tensor in used.items():
        if tensor.dtype not in (torch.float16, torch.float32, torch.float64):
            raise UnsupportedOp(f"proof: no checker rule for {tensor.dtype} ({key} of {name}); use float32 weights")
    held = _held(given)
    layers = {step.name: step.node.layer for step in steps}
    names: _Names = {}
    for (step, key), tensor in used.items():
        spoken = f"{layers[step]}.{_SPOKEN.get(key, key)}"
        same = held.get((str(tensor.dtype), tuple(tensor.shape), _raw(tensor)), [])
        found = sorted(same, key=lambda name: (not f".{name}".endswith(f".{spoken}"), name))
        if found:
            names[step, key] = found[0]
    missing = tuple(dict.fromkeys(step for step, key in used if (step, key) not in names))
    if given is not None and not missing:
        return given, names, ()
    beside = file.with_name(file.name + ".safetensors")
    names = {place: ".".join(place) for place in used}
    save_file({names[place]: t.detach().cpu().contiguous().clone() for place, t in used.items()}, beside)
    return beside, names, missing


def _held(given: Path | None) -> dict[tuple[str, tuple[int, ...], bytes], list[str]]:
    """The tensors in a safetensors file by what they are; nothing of any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = {} if given is None else load_file(given)
    except (OSError, SafetensorError):
        return {}
    held: dict[tuple[str, tuple[int, ...], bytes], list[str]] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.dtype != torch.bfloat16:
            held.setdefault((str(tensor.dtype), tuple(tensor.shape), _raw(tensor)), []).append(name)
    return held


def _claims(steps: Sequence[Listed], names: _Names) -> dict[str, Any]:
    kinds = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
    claims = {}
    for step in steps:
        for key, tensor in step.tensors.items():
            if tensor is not None:
                digest = hashlib.sha256(_raw(tensor)).hexdigest()
                claim = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "sha256": digest}
                claims[names[step.name, key]] = claim
    return claims


def _as_json(step: Listed, names: _Names) -> dict[str, Any]:
    tensors = {key: names.get((step.name, key)) for key in step.tensors}
    settings = dict(step.settings)
    return {"name": step.name, "op": step.op, "inputs": list(step.inputs), "settings": settings, "tensors": tensors}


# Bounds --------------------------------------------------------------------------------------------------------------


def _chains(steps: Sequence[Listed]) -> list[tuple[Listed, ...]]:
    """What needs a bound of its own: layers, with the batch norm that alone reads them, and what is not 1-Lipschitz."""
    readers: dict[str, list[Listed]] = {}
    for step in steps:
        for name in step.inputs:
            readers.setdefault(name, []).append(step)
    chains: dict[str, tuple[Listed, ...]] = {}
    for step in steps[:-1]:
        after = readers[step.name]
        if step.op in ("conv2d", "linear") and len(after) == 1 and after[0].op == "batch_norm":
            chains[after[0].name] = (step, after[0])
        elif step.name not in chains and (step.op in ("conv2d", "linear") or _factor(step) != 1.0):
            chains[step.name] = (step,)
    return [chains[step.name] for step in steps if step.name in chains]


def _factor(step: Listed) -> float:
    """By what a step that is no layer multiplies distances at most; above 0 and other than 1 for a normalisation."""
    if step.op == "normalise":
        return 1 / min(abs(float.fromhex(std)) for std in step.settings["std"]) * (1 + 2.0**-40)
    if step.op == "batch_norm":
        return max(float(_batch_norm(step).abs().max()), 2.0**-200) * (1 + 2.0**-40)
    if step.op == "leaky_relu":
        return max(1.0, abs(float.fromhex(step.settings["slope"])))
    if step.op == "max_pool":
        windows = zip(step.settings["kernel"], step.settings["stride"], strict=True)
        return math.sqrt(math.prod(-(-k // s) for k, s in windows))
    return 1 / math.sqrt(math.prod(step.settings["kernel"])) if step.op == "avg_pool" else 1.0


def _batch_norm(step: Listed) -> torch.Tensor:
    """The factor of each channel."""
    variance, weight = step.tensors["variance"], step.tensors["weight"]
    assert variance is not None
    scale = (variance.double() + float.fromhex(step.settings["eps"])).rsqrt()
    return scale if weight is None else scale * weight.double()


def _bound(chain: tuple[Listed, ...]) -> dict[str, Any]:
    """The claim of a chain, a little above its norm, with few bits; and where the checker finds the proof."""
    step = chain[0]
    if step.op not in ("conv2d", "linear"):
        norm, hint = _factor(step), "factors"
    else:
        weight = step.tensors["weight"]
        assert weight is not None
        weight = weight.detach().cpu().double()
        if len(chain) > 1:
            weight = weight * _batch_norm(chain[1]).cpu().reshape(-1, *(1,) * (weight.ndim - 1))
        norm, hint = _conv_norm(step, weight) if step.op == "conv2d" else _dense_norm(step, weight)
        norm = max(norm, 2.0**-200) * (1 + SLACK)
    mantissa, exponent = math.frexp(norm)
    bound = math.ldexp(math.ceil(math.ldexp(mantissa, checker.DIGITS)), exponent - checker.DIGITS)
    return {"steps": [one.name for one in chain], "bound": bound.hex(), "hint": hint}


def _dense_norm(step: Listed, weight: torch.Tensor) -> tuple[float, str]:
    side, other = sorted(weight.shape)
    if side * side * (other + side) > MOST_WORK:
        raise UnsupportedOp(
            f"proof: no checker rule for a linear layer of {weight.shape[1]} to {weight.shape[0]} entries "
            f"({step.name}): integers would take it hours; the report holds without a proof: leave --proof out"
        )
    return float(torch.linalg.matrix_norm(weight, 2)), "dense"


def _conv_norm(step: Listed, weight: torch.Tensor) -> tuple[float, str]:
    """The smaller of the bound on the torus and, for small maps, the norm with all borders."""
    conv = Conv(
        weight,
        tuple(step.before[1:]),
        tuple(step.settings["stride"]),
        tuple((p, p) for p in step.settings["padding"]),
        tuple(step.settings["dilation"]),
        step.settings["groups"],
    )
    inner, sizes, _ = torus(conv)
    symbols = Symbols(inner)
    if symbols.zero:
        return 0.0, "++"
    # A symbol as a real matrix has twice its rows: Gram matrix, guess and check take about 16 products per complex one.
    if math.prod(sizes) / 2 * conv.groups * symbols.side**2 * symbols.columns * 16 > MOST_WORK:
        raise UnsupportedOp(
            f"proof: no checker rule for a convolution of this size ({step.name}, {tuple(weight.shape)}): integers "
            "would take it hours; the report holds without a proof: leave --proof out"
        )
    index, twist = best_class(symbols, inner, sizes)
    norm = symbols.unscale(symbols.largest_norm(index, sizes))
    work = _dense_work(conv)
    if work <= DENSE_WORK:
        exact = float(torch.linalg.matrix_norm(_matrix(conv), 2))
        if exact < norm * (1 - 1e-4):
            return exact, "dense"
    return norm, twist


def _dense_work(conv: Conv) -> float:
    """About how many products the checker needs for the whole matrix of one group; inf where it is out of reach."""
    outs, ins = conv.weight.shape[0] // conv.groups, conv.weight.shape[1]
    sides = sorted([(ins * math.prod(conv.input_size), ins, conv.input_size[1]),
                    (outs * math.prod(conv.output_size), outs, conv.output_size[1])])  # fmt: skip
    (side, channels, width), (other, _, _) = sides
    if side > DENSE_SIDE or other > 4 * DENSE_SIDE:
        return math.inf
    reach = (conv.kernel_size[0] - 1) * conv.dilation[0]
    band = min(side, channels * (reach * width + (conv.kernel_size[1] - 1) * conv.dilation[1] + 1))
    return conv.groups * side * band * (min(other, 2 * band) + band / 2)


def _matrix(conv: Conv) -> torch.Tensor:
    """The matrix of the convolution, one column per input entry."""
    count = math.prod(conv.input_shape)
    eye = torch.eye(count, dtype=torch.float64).reshape(count, *conv.input_shape[1:])
    return conv.apply(eye).reshape(count, -1)
