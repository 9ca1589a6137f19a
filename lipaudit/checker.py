"""Checks a lipaudit proof without lipaudit: `python checker.py proof.json --checkpoint weights.safetensors`.

It needs Python's standard library only, and is meant to be read in one sitting. It accepts a proof only if it derived
every number in it again, from the weights in the checkpoint and the images in the proof:
 1. Tensors have the dtype, shape and SHA-256 that the proof says.
 2. Layer bounds (Note [Layer bounds]): ||A|| <= b for every linear step, proved in integers.
 3. Composition: a layer multiplies distances by at most its bound; ReLU, sorting, selecting by 1; a sum adds them. The
    last layer W gives |f_i - f_j| <= ||w_i - w_j|| L |x - x'|, in rational numbers, rounded up once.
 4. radius = the smallest margin_j / L_yj, rounded down, of logits in fixed point, less the bound of their error.

To be trusted: that these steps are the network, images and labels those that you mean; Python's integers; this file.
Hints and floats only guess: wrong ones make a proof fail. The promise is about the exact function, not about float32.

Note [Layer bounds]
    Torus: y[i] = sum_a K[a] x[s i + d a - p] with x supported on [0, n). Read indices modulo N, with x[j + N] = +-x[j].
    Those touched lie in [-p, n + p - 1]; if N >= n + p, those outside [0, n) meet zeros of the period, and if s divides
    N and N / s >= m, the m outputs are distinct rows. So the zero-padded map is a part of the (twisted) circulant one,
    and ||A|| <= max ||D(w)|| over its frequencies, D the symbol of the kernel on the s phases of x. A complex matrix is
    the real one [[Re, -Im], [Im, Re]]. Dense: the matrix of the zero-padded map itself, smaller, and more work.
    ||A|| <= B if B^2 I - A A^T is positive semidefinite. For any R (the Cholesky factor that floating point finds) take
    E = B^2 I - A A^T - R R^T in integers: R R^T is positive semidefinite, and so is E if its diagonal dominates its
    rows (Gershgorin). Rounding A to integers moves it by at most `error` (Frobenius norm): B = b - error.
"""

from __future__ import annotations

import argparse
import base64
import collections
import functools
import hashlib
import itertools
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from operator import mul, sub
from pathlib import Path
from typing import Any

HEAD = ["lipaudit-proof/2", "every input closer than radius (L2) to the image has the label as its only largest logit"]
BITS, PLACES, SIZE = 224, 128, 60  # binary places of logits; of factors and sines; of bounds in matrices: any are sound
ENTRIES, STEPS = 1 << 22, 1 << 12  # of what one step gives; of steps: more would take days
DIGITS = 32  # significant bits of a layer bound: one moved by less is refused; by more, it changes what follows from it
KINDS = {"F16": "e", "F32": "f", "F64": "d"}
WINDOW = {"kernel": (1, 1), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
OPS = {  # the names of settings and of tensors; bias, and weight of batch_norm, may be null
    "normalise": ("mean std", ""), "batch_norm": ("eps", "mean variance weight bias"), "linear": ("", "weight bias"),
    "conv2d": ("stride padding dilation groups", "weight bias"), "max_pool": ("kernel stride padding", ""),
    "avg_pool": ("kernel stride", ""), "relu": ("", ""), "leaky_relu": ("slope", ""), "group_sort": ("size", ""),
    "add": ("", ""), "pad_channels": ("before after", ""), "flatten": ("", ""),
}  # fmt: skip
# Shapes are without the batch axis; per axis a window has size, kernel, stride, padding, dilation, outputs.
Step = collections.namedtuple("Step", "name op inputs before shape window settings values groups")
Row = tuple[int, list[int]]  # of an integer matrix: the column of its first entry, and the entries from there on


class Rejected(Exception):
    """The proof claims what cannot be derived."""


def require(field: str, claimed: Any, derived: Any = True) -> None:
    """The claim has to be what was derived, as JSON: there, 1 is neither 1.0 nor true."""
    one, two = (json.dumps(value, sort_keys=True, default=sorted) for value in (claimed, derived))
    if one != two:
        raise Rejected(f"{field}: " + ("is not so" if derived is True else f"claimed {one:.200}, derived {two:.200}"))


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require("names of fields: each once", len(dict(pairs)), len(pairs))  # readers see the first, programs the last
    return dict(pairs)


def fields(item: dict[str, Any], names: str, where: str) -> list[Any]:
    """The values of an object that has exactly these fields."""
    require(f"{where}: names of fields", sorted(item) if isinstance(item, dict) else item, sorted(names.split()))
    return [item[name] for name in names.split()]


def whole(value: Any, where: str, least: int = 0) -> int:
    require(f"{where}: {value!r:.40} is a whole number from {least} on", type(value) is int and value >= least)
    return value


def number(text: str, where: str) -> Fraction:
    """A finite float written in hexadecimal, as Python writes it; zero without a sign."""
    require(where, text, (float.fromhex(text) + 0.0).hex())
    return Fraction(float.fromhex(text))


def integers(values: Sequence[float]) -> tuple[list[int], int]:
    """Whole numbers n and a k with values = n / 2^k, exactly."""
    ratios = [value.as_integer_ratio() for value in values]
    places = max(low.bit_length() - 1 for _, low in ratios)
    return [high << places - low.bit_length() + 1 for high, low in ratios], places


def fixed(values: Sequence[float]) -> list[int]:
    """Rounded down to BITS places: off by less than one unit; exact for all of float32."""
    return [(high << BITS) // low for high, low in (value.as_integer_ratio() for value in values)]


def root_above(square: Fraction) -> float:
    """The smallest float whose square is not below."""
    places = max(0, square.denominator.bit_length() - square.numerator.bit_length()) // 2 + 64  # 63 bits or more
    root = float(Fraction(math.isqrt(math.floor(square * 4**places)), 2**places))
    return root if Fraction(root) ** 2 >= square else math.nextafter(root, math.inf)


def read_tensors(claims: dict[str, Any], data: bytes) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
    """Shapes and numbers of tensors in a safetensors file, as the proof says; NaN and infinity fail once made exact."""
    start, found = 8 + struct.unpack("<Q", data[:8])[0], {}
    header = json.loads(data[8:start], object_pairs_hook=once)
    for name, claim in claims.items():
        kind, shape, (first, last) = (header[name][key] for key in ("dtype", "shape", "data_offsets"))
        raw = data[start + first : start + last]
        require(f"tensors.{name}", claim, {"dtype": kind, "shape": shape, "sha256": hashlib.sha256(raw).hexdigest()})
        found[name] = tuple(shape), struct.unpack(f"<{math.prod(shape)}{KINDS[kind]}", raw)
    return found


def inner(a: Row, b: Row) -> int:
    """The scalar product."""
    low, high = max(a[0], b[0]), min(a[0] + len(a[1]), b[0] + len(b[1]))
    return sum(map(mul, a[1][low - a[0] : high - a[0]], b[1][low - b[0] : high - b[0]])) if low < high else 0


def norm_at_most(rows: list[Row], bound: int) -> bool:
    """Whether ||A|| <= bound > 0 is proved, for the matrix A of these rows; see Note [Layer bounds]."""
    square, margin, guess, ends = bound**2, [0] * len(rows), list[list[float]](), [s + len(r) for s, r in rows]
    first = [next(j for j in range(i + 1) if ends[j] > row[0] or j == i) for i, row in enumerate(rows)]
    rest = [[(i == j) * square - inner(row, rows[j]) for j in range(first[i], i + 1)] for i, row in enumerate(rows)]
    for i, line in enumerate(rest):
        found: list[float] = []
        for j, entry in enumerate(line[:-1], first[i]):
            low = max(first[i], first[j])
            dot = sum(map(mul, found[low - first[i] :], guess[j][low - first[j] : -1]))
            found.append((entry / square - dot) / guess[j][-1])
        pivot = line[-1] / square - 2.0**-34 - sum(value * value for value in found)
        if pivot <= 0:
            return False
        guess.append([*found, math.sqrt(pivot)])
    factor = [(start, [int(value * bound) for value in row]) for start, row in zip(first, guess, strict=True)]
    for i, line in enumerate(rest):
        for j, entry in enumerate(line, first[i]):
            left = entry - inner(factor[i], factor[j])
            margin[i] += left if i == j else -abs(left)
            margin[j] -= 0 if i == j else abs(left)
    return min(margin, default=0) >= 0


@functools.cache
def cosine(turn: Fraction) -> tuple[int, int]:
    """Cosine and sine of 2 pi turn, 0 <= turn < 1, in units of 2^-PLACES, off by less than 1.01: Taylor."""
    one = 1 << 2 * PLACES
    arc = [sum((-1) ** k * (one // n ** (2 * k + 1) // (2 * k + 1)) for k in range(PLACES)) for n in (5, 239)]
    angle, term, total = int(8 * turn * (4 * arc[0] - arc[1])), one, [one, 0, 0, 0]  # Machin: pi / 4
    for k in range(1, 120):  # (2 pi)^120 / 120! is far below the unit
        term = term * angle // one // k
        total[k % 4] += term
    return (total[0] - total[2]) >> PLACES, (total[1] - total[3]) >> PLACES


def matrices(window: list[tuple[int, ...]], kernel: list[list[list[int]]], hint: Any) -> Iterator[list[Row]]:
    """Matrices of which the largest norm bounds that of a convolution with the weights kernel[out][in][tap]."""
    (n1, k1, s1, p1, d1, m1), (n2, k2, s2, p2, d2, m2) = window
    outs, ins, taps = len(kernel), len(kernel[0]), list(itertools.product(range(k1), range(k2)))
    if hint == "dense":
        entries: tuple[dict[int, dict[int, int]], ...] = {}, {}
        for i, j, (t, (a, b)) in itertools.product(range(m1), range(m2), enumerate(taps)):
            y, x = s1 * i + d1 * a - p1, s2 * j + d2 * b - p2
            for o, c in itertools.product(range(outs), range(ins)) if 0 <= y < n1 and 0 <= x < n2 else ():
                row, column = (i * m2 + j) * outs + o, (y * n2 + x) * ins + c
                entries[0].setdefault(row, {})[column] = entries[1].setdefault(column, {})[row] = kernel[o][c][t]
        lines = (line for _, line in sorted(min(entries, key=len).items()))
        yield [(min(line), [line.get(k, 0) for k in range(min(line), max(line) + 1)]) for line in lines]
        return
    sizes, seen = [2 * -(-max(n + p, s * m) // s) for n, _, s, p, _, m in window], set()
    places = [divmod(d1 * a, s1) + divmod(d2 * b, s2) for a, b in taps]
    for wave in itertools.product(*(range(sign == "-", size, 2) for sign, size in zip(hint, sizes, strict=True))):
        v, w = (Fraction(at, size) for at, size in zip(wave, sizes, strict=True))
        turns = tuple((v * a + w * b) % 1 for a, _, b, _ in places)
        if turns in seen:
            continue
        seen |= {turns, tuple(-turn % 1 for turn in turns)}  # the kernel is real: conjugate to one that was there
        re, im = ([[0] * (s1 * s2 * ins) for _ in kernel] for _ in range(2))
        for t, (_, a, _, b) in enumerate(places):
            cos, sin = cosine(turns[t])
            for o, c in itertools.product(range(outs), range(ins)):
                re[o][(a * s2 + b) * ins + c] += kernel[o][c][t] * cos >> PLACES
                im[o][(a * s2 + b) * ins + c] += kernel[o][c][t] * sin >> PLACES
        matrix = [[*x, *y] for x, y in zip(re, im, strict=True)]
        matrix += [[*(-value for value in y), *x] for x, y in zip(re, im, strict=True)]
        yield [(0, line) for line in min(matrix, [list(column) for column in zip(*matrix, strict=True)], key=len)]


def squares(step: Step) -> list[Fraction]:
    """The squares of the factors by which a step that is no layer multiplies distances at most, one or per channel."""
    if step.op in ("normalise", "batch_norm"):
        below = [Fraction(v) + number(step.settings.get("eps", "0x0.0p+0"), "eps") for v in step.values["variance"]]
        require(f"steps.{step.name}: variance + eps above zero", min(below) > 0)
        return [Fraction(w) ** 2 / b for w, b in zip(step.values["weight"] or [1.0] * len(below), below, strict=True)]
    if step.op == "leaky_relu":
        return [max(Fraction(1), number(step.settings["slope"], f"steps.{step.name}.slope") ** 2)]
    if step.op == "max_pool":  # an entry is seen by at most so many windows
        return [Fraction(math.prod(-(-k // s) for _, k, s, *_ in step.window))]
    return [Fraction(1, math.prod(axis[1] for axis in step.window))]  # an average; 1 of all others


def factors(step: Step) -> list[int]:
    """What a normalisation multiplies each channel by, in units of 2^-PLACES, off by at most one."""
    roots, weight = [math.isqrt(int(square * 4**PLACES)) for square in squares(step)], step.values["weight"]
    return [-root if weight and weight[c] < 0 else root for c, root in enumerate(roots)]


def bound_holds(step: Step, after: list[Step], bound: Fraction, hint: Any) -> bool:
    """Whether a step, or a layer and a batch norm after it, has a norm of at most `bound`."""
    if step.op not in ("conv2d", "linear"):
        return not after and hint == "factors" and max(squares(step)) <= bound**2
    (weights, places), ins = integers(step.values["weight"]), step.before[0] // step.groups
    taps, outs = math.prod(axis[1] for axis in step.window), step.shape[0] // step.groups
    require(f"steps.{step.name}: after it", [one.op for one in after], ["batch_norm"] * len(after))
    unit = Fraction(2) ** (SIZE - math.frexp(float(bound))[1])
    scale = [unit * f / 2 ** (places + PLACES) for f in (factors(after[0]) if after else [1 << PLACES] * step.shape[0])]
    # Each entry is off by its rounding to an integer, and by the factor, which is off by one unit.
    off = 1 + math.ceil(max(map(abs, weights)) * unit / 2 ** (places + PLACES))
    split = [[weights[(o * ins + c) * taps :][:taps] for c in range(ins)] for o in range(step.shape[0])]
    scaled = [[[int(w * f) for w in column] for column in line] for line, f in zip(split, scale, strict=True)]
    for kernel in (scaled[g : g + outs] for g in range(0, step.shape[0], outs)):
        total = sum(abs(weight) for line in kernel for column in line for weight in column)
        for rows in matrices(step.window, kernel, hint):
            # Of a symbol's entry: its taps' own, their two roundings, cosines and sines off by 1.01 units each.
            error = (math.isqrt(sum(len(row) for _, row in rows)) + 1) * (off + 2) * taps + (2 * total >> PLACES) + 2
            if (room := math.floor(bound * unit) - error) <= 0 or not norm_at_most(rows, room):
                return False
    return True


def read_step(item: Any, shapes: dict[str, tuple[int, ...]], tensors: dict[str, Any]) -> Step:
    """One step; its shape follows from those of earlier ones."""
    name, op, inputs, settings, used = fields(item, "name op inputs settings tensors", "steps")
    require("steps: known operation, new printable name", op in OPS and name not in shapes and name.isprintable())
    where, given = f"steps.{name}", {key: tensors[source] for key, source in used.items() if source is not None}
    require(f"{where}.inputs", inputs, [source for source in shapes if source in inputs])
    require(f"{where}.inputs: number, shapes", [len(inputs), len({*map(shapes.get, inputs)})], [1 + (op == "add"), 1])
    fields(settings, OPS[op][0], f"{where}.settings")
    fields(used, OPS[op][1], f"{where}.tensors")
    before, groups = shapes[inputs[0]], whole(settings.get("groups", 1), f"{where}.groups", 1)
    weight = given["weight"][0] if op in ("conv2d", "linear") else ()
    options, window = {**WINDOW, **settings, **({"kernel": weight[2:]} if op == "conv2d" else {})}, []
    for n, *axis in zip((*before, 1, 1)[1:3], *(options[key] for key in WINDOW), strict=True):
        k, s, p, d = (whole(value, f"{where}.{key}", key != "padding") for key, value in zip(WINDOW, axis, strict=True))
        outputs = (n + 2 * p - d * (k - 1) - 1) // s + 1
        small = p <= n + (k if op == "conv2d" else 0) and s <= n + 2 * p + k
        fits = [outputs > 0, small, k > 1 or d == 1, op != "max_pool" or 2 * p <= k, op != "avg_pool" or s >= k]
        require(f"{where}: fits, small steps, no dilation of one tap, padding below half, no overlap", fits, [True] * 5)
        window.append((n, k, s, p, d, outputs))
    if weight:
        axes = [len(weight), len(before), weight[1] * groups, weight[0] % groups]
        require(f"{where}: axes, channels, groups", axes, [*((4, 3) if op == "conv2d" else (2, 1)), before[0], 0])
    more = sum(whole(settings.get(side, 0), where) for side in ("before", "after"))
    require(f"{where}: channels left over", before[0] % whole(settings.get("size", 1), f"{where}.size", 1), 0)
    shape = ((weight or before)[0] + more, *(axis[-1] for axis in window))[: len(before)]
    for key, (found, _) in given.items():
        require(f"{where}.{key}: shape", found, weight if weight and key == "weight" else shape[:1])
    values = {"weight": None, "bias": None, **{key: numbers for key, (_, numbers) in given.items()}}
    if op == "normalise":
        mean, std = ([number(one, f"{where}.{key}") for one in settings[key]] for key in ("mean", "std"))
        require(f"{where}: mean and std per channel", [len(mean), len(std), min(std) > 0], [shape[0], shape[0], True])
        values |= {"mean": mean, "variance": [one**2 for one in std]}
    shape = (math.prod(before),) if op == "flatten" else shape
    return Step(name, op, inputs, before, shape, window, settings, values, groups)


def run(step: Step, values: Sequence[list[int]], errors: Sequence[int]) -> tuple[list[int], int]:
    """The output in units of 2^-BITS, off by at most the second number, for inputs that are off by `errors`."""
    op, x, e, area, settings = step.op, values[0], errors[0], math.prod(step.before[1:]), step.settings
    if op == "add":
        return list(map(sum, zip(*values, strict=True))), sum(errors)
    if op in ("relu", "leaky_relu"):
        slope = number(settings.get("slope", "0x0.0p+0"), step.name)
        return [v if v >= 0 else math.floor(v * slope) for v in x], math.ceil(e * max(Fraction(1), abs(slope))) + 1
    if op in ("flatten", "pad_channels"):
        return [0] * (settings.get("before", 0) * area) + x + [0] * (settings.get("after", 0) * area), e
    if op == "group_sort":
        blocks = (x[g : g + settings["size"] * area] for g in range(0, len(x), settings["size"] * area))
        ranked = (zip(*(sorted(block[k::area]) for k in range(area)), strict=True) for block in blocks)
        return [v for ranks in ranked for rank in ranks for v in rank], e
    bias = fixed(step.values["bias"] or [0.0] * step.shape[0])
    if op in ("normalise", "batch_norm"):
        scale, mean = factors(step), fixed(step.values["mean"])
        centred = [v - mean[k // area] for k, v in enumerate(x)]
        off = (e + 1) * (max(map(abs, scale)) + 1) + max(map(abs, centred))
        return [(v * scale[k // area] >> PLACES) + bias[k // area] for k, v in enumerate(centred)], (off >> PLACES) + 3
    (n1, *_), (n2, *_) = step.window
    lines = [[[s * i + d * a - p for a in range(k)] for i in range(m)] for _, k, s, p, d, m in step.window]
    places = (itertools.product(*pair) for pair in itertools.product(*lines))
    windows = [[y * n2 + x if 0 <= y < n1 and 0 <= x < n2 else -1 for y, x in place] for place in places]
    if op in ("max_pool", "avg_pool"):
        seen = ([x[c + k] for k in window if k >= 0] for c in range(0, len(x), area) for window in windows)
        return [max(some) if op == "max_pool" else sum(some) // len(some) for some in seen], e + 1
    (weights, digits), width = integers(step.values["weight"]), len(step.values["weight"]) // step.shape[0]
    rows, padded, result = [weights[k : k + width] for k in range(0, len(weights), width)], [*x, 0], []
    ins, outs = step.before[0] // step.groups, step.shape[0] // step.groups
    for g in range(step.groups):
        channels = range(g * ins * area, (g + 1) * ins * area, area)
        patches = [[padded[c + k if k >= 0 else -1] for c in channels for k in window] for window in windows]
        for o in range(g * outs, (g + 1) * outs):
            result += [(sum(map(mul, patch, rows[o])) >> digits) + bias[o] for patch in patches]
    return result, (e * max(sum(map(abs, row)) for row in rows) >> digits) + 3


class Network:
    """The network of a proof, its layer bounds proved; raises `Rejected`."""

    def __init__(self, proof: dict[str, Any], checkpoint: bytes, say: Callable[[str], None]) -> None:
        tensors = read_tensors(proof["tensors"], checkpoint)
        self.shape, self.kind = fields(proof["input"], "shape dtype", "input")
        require("input.shape, steps: axes, number", len(self.shape) in (1, 3) and len(proof["steps"]) <= STEPS)
        self.steps, shapes = [], {"input": tuple(whole(n, "input.shape", 1) for n in self.shape)}
        for item in proof["steps"]:
            self.steps.append(read_step(item, shapes, tensors))
            shapes[self.steps[-1].name] = self.steps[-1].shape
        unread = set(shapes) - {source for step in self.steps for source in step.inputs}
        found = [unread, self.steps[-1].op, max(map(math.prod, shapes.values())) <= ENTRIES]
        require(f"steps: last; at most {ENTRIES} numbers in each", found, [{self.steps[-1].name}, "linear", True])
        reach, waiting, named = {"input": Fraction(1)}, list(proof["bounds"]), {step.name: step for step in self.steps}
        for step in self.steps[:-1]:
            where = f"bounds.{step.name}"
            if waiting and waiting[0]["steps"][-1:] == [step.name]:
                chain, claimed, hint = fields(waiting.pop(0), "steps bound hint", "bounds")
                (first, *after), bound = (named[name] for name in chain), number(claimed, where)
                require(f"{where}: links", [one.inputs for one in after], [[first.name]] * (len(chain) > 1))
                require(f"{where}: {claimed} > 0, of few bits", bound > 0 and bound.numerator.bit_length() <= DIGITS)
                say(f"proving {' + '.join(chain)}: at most {float(bound):.6g}")
                require(f"{where}: {float(bound)!r} is proved, {hint!r:.40}", bound_holds(first, after, bound, hint))
                reach[step.name] = sum((reach[source] for source in first.inputs), Fraction(0)) * bound
            elif step.op not in ("conv2d", "linear") and max(squares(step)) == 1:
                reach[step.name] = sum((reach[source] for source in step.inputs), Fraction(0))
        before = self.steps[-1].inputs[0]
        require("bounds: in order, and of all that need one", [before in reach, waiting], [True, []])
        (weights, places), width = integers(self.steps[-1].values["weight"]), self.steps[-1].before[0]
        rows, factor = [weights[k : k + width] for k in range(0, len(weights), width)], (reach[before] / 2**places) ** 2
        pairs = ([sum(d * d for d in map(sub, v, w)) * factor for w in rows[i:]] for i, v in enumerate(rows, 1))
        self.pairwise = [[root_above(square).hex() for square in line] for line in pairs]  # of i and j > i

    def sample(self, claimed: dict[str, Any]) -> dict[str, Any]:
        """What a proof says of a sample, derived from image and label; logits in 2^-BITS."""
        raw, label = base64.b64decode(claimed["image"]), whole(claimed["label"], "samples.label")
        state = {"input": (fixed(struct.unpack(f"<{math.prod(self.shape)}{KINDS[self.kind]}", raw)), 1)}
        for step in self.steps:
            state[step.name] = run(step, *zip(*(state[source] for source in step.inputs), strict=True))
        logits, error = state[self.steps[-1].name]
        margins = {j: logits[label] - logits[j] for j in range(len(logits)) if j != label}
        bounds = {j: number(self.pairwise[min(j, label)][abs(j - label) - 1], "pairwise") for j in margins}
        require("pairwise: above zero", min(bounds.values()) > 0)
        sure = min(Fraction(max(0, margin - 2 * error), 2**BITS) / bounds[j] for j, margin in margins.items())
        radius = float(sure) if Fraction(float(sure)) <= sure else math.nextafter(float(sure), 0.0)
        return {
            "image": base64.b64encode(raw).decode(), "sha256": hashlib.sha256(raw).hexdigest(), "label": label,
            "prediction": logits.index(max(logits)), "logits": [hex(v) for v in logits],
            "margin": (min(margins.values()) / 2**BITS).hex(), "radius": radius.hex(),
        }  # fmt: skip


def check(proof: dict[str, Any], checkpoint: bytes, most: int | None = None, say: Callable[[str], None] = print) -> str:
    """Check a proof, at most so many of its samples, and say what is proved; raises `Rejected`."""
    try:
        names = "format promise checkpoint_sha256 count input tensors steps bounds pairwise samples"
        derived = [*HEAD, hashlib.sha256(checkpoint).hexdigest(), len(proof["samples"])]
        require("format, promise, checkpoint_sha256, count", fields(proof, names, "proof")[:4], derived)
        samples, (shape, kind) = proof["samples"][:most], fields(proof["input"], "shape dtype", "input")
        size = 4 * -(-math.prod(shape) * struct.calcsize(KINDS[kind]) // 3)  # before any work on shapes not theirs
        require("samples: one or more, with images of base64 length", {len(one["image"]) for one in samples}, {size})
        network = Network(proof, checkpoint, say)
        require("pairwise", proof["pairwise"], network.pairwise)
        for k, claimed in enumerate(samples):
            found = {"number": k, **network.sample(claimed)}
            for name, value in zip(found, fields(claimed, " ".join(found), f"samples.{k}"), strict=True):
                require(f"samples.{k}.{name}", value, found[name])
            say(f"sample {k}: radius {float.fromhex(claimed['radius']):.6g}")
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, struct.error) as error:
        raise Rejected(f"a field is missing or of the wrong kind: {type(error).__name__}: {error!s:.200}") from error
    return f"accepted: {len(proof['bounds'])} layer bounds, radii of {len(samples)} of {proof['count']} samples"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Check a lipaudit proof. Exit: 0 accepted, 4 rejected, 2 unreadable.")
    parser.add_argument("proof", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the safetensors file that it is about")
    parser.add_argument("--samples", type=int, help="check at most so many samples")
    given = parser.parse_args()
    try:
        claims = json.loads(given.proof.read_bytes(), object_pairs_hook=once)
        sys.stdout.write(check(claims, given.checkpoint.read_bytes(), given.samples) + "\n")
    except (Rejected, OSError, ValueError, RecursionError) as error:
        parser.exit(4 if isinstance(error, Rejected) else 2, f"rejected: {error}\n")
