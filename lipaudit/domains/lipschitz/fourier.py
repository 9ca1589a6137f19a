"""Layers in the Fourier domain: a transform, a matrix for each frequency, the transform back.

Note [Fourier layers]
    A discrete Fourier transform of N entries is sqrt(N) times an isometry. Of a real tensor half of the spectrum is
    enough (rfft): with the weight 2 for each frequency whose conjugate is left out and 1 for the others (the columns 0
    and, for an even length n, n / 2), ||X||_w^2 = N ||x||^2. The way back (irfft) transforms all axes but the last one
    as complex numbers, which changes neither weights nor norm, but for its factor; along the last axis it takes
        x_t = Re y_0 + 2 sum Re(y_k e^(2 pi i k t / n)) (+ Re y_(n/2) (-1)^t),
    whose norm is that of the spectrum without the imaginary parts of y_0 and y_(n/2): at most sqrt(n) ||y||_w. That
    holds for every y, also for one that no real tensor has.
    In between an entry is a sum of entries of the same frequency times constants: the rows of a matrix A_f for each
    frequency f, and ||A X||_w <= max_f ||A_f|| ||X||_w whatever the weights are. Where the weights w of what arrives
    are not those v that the way back needs, ||Y||_v <= max (v / w)^(1/2) ||Y||_w. A sum over entries of several
    frequencies begins anew, with the bound so far as a factor.
    Conjugates are kept apart: A conj(B X) = conj(conj(A) B X).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lipaudit.domains.einsum import einsum_labels
from lipaudit.domains.graph import Node, Ref, call, refs_in
from lipaudit.domains.interpreter import where
from lipaudit.domains.lipschitz.fourier_pairs import Layer, pair_of
from lipaudit.domains.lipschitz.propagator import INPUT, RULES, Ledger, Value
from lipaudit.domains.lipschitz.spectra import (
    Base,
    Spectrum,
    alike,
    begun_anew,
    broadcast,
    chosen,
    concatenated,
    opened,
    refuse_large,
    varying,
)
from lipaudit.domains.transforms import TRANSFORMS, Transform, transform
from lipaudit.errors import UnsupportedOp
from lipaudit.results.bounds import Upper
from lipaudit.rounding import UNIT, gamma, up

_ENTRANCES = (*TRANSFORMS, "view_as_complex.default", "complex.default")
_MOVES = (
    "view.default", "_unsafe_view.default", "reshape.default", "flatten.using_ints", "permute.default", "t.default",
    "transpose.int", "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims", "movedim.int",
    "movedim.intlist", "roll.default", "flip.default", "fft_fftshift.default", "fft_ifftshift.default",
    "slice.Tensor", "select.int", "expand.default", "split.Tensor", "split_with_sizes.default", "unbind.int",
    "chunk.default", "index_select.default",
)  # fmt: skip
_PRODUCTS = ("matmul.default", "mm.default", "bmm.default", "einsum.default")
_SUMS = ("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")


@RULES.rule(
    *TRANSFORMS, "_conj.default", "view_as_complex.default", "view_as_real.default", "complex.default",
    "fft_fftshift.default", "fft_ifftshift.default",
)  # fmt: skip
def complex_numbers(node: Node, ledger: Ledger, **arguments: Any) -> Value:
    """Complex numbers are bounded from the transform to the way back at once, and only in the network bound."""
    del ledger, arguments
    raise UnsupportedOp(f"{node.op.split('.')[0]} has a bound only within a whole Fourier layer, for the network bound")


def fourier_layers(ledger: Ledger) -> Callable[[Node, Mapping[str, Any]], Value | None]:
    """What stands for the value of a node of a Fourier layer, from its arguments; None for other nodes.

    Its complex values are those of what enters it; where real numbers come out, all of it is bounded.
    """
    reading = _Reading(ledger)

    def instead(node: Node, arguments: Mapping[str, Any]) -> Value | None:
        touched = reading.complexes.intersection((node.name, *node.refs()))
        if not touched and node.op not in _ENTRANCES:
            return None
        value, out = _values(arguments)[0], reading.read(node)
        if out is None:
            return value
        nodes, grown = reading.region(node)
        before, reading.before = reading.before, reading.layer(node, value, out, nodes, grown)
        if before is not None and reading.before is not None and ledger.looks_back:
            together = pair_of(ledger, before, reading.before)
            if together is not None:
                return together
        because = f"a matrix for each frequency, the largest norm of all of them: {out:.9g}"
        return ledger.replaced(node, value, Upper(out, "fourier", because), tuple((n, None) for n in nodes), grown)

    return instead


def _values(arguments: Mapping[str, Any]) -> list[Value]:
    several = (v if isinstance(v, list) else [v] for v in arguments.values())
    return [value for some in several for value in some if isinstance(value, Value)]


class _Reading:
    """The complex tensors of a graph, as far as it has been read."""

    def __init__(self, ledger: Ledger) -> None:
        graph = ledger.graph
        self.device, self.nodes = ledger.device, graph.nodes
        self.shapes = {INPUT: (1, *graph.input_shape), **{node.name: tuple(node.shape) for node in graph.nodes}}
        self.complexes = set(graph.complexes)
        self.last = {name: reader.name for reader in graph.nodes for name in reader.refs()}
        self.spectra: dict[str, Spectrum] = {}
        self.edges: dict[str, list[tuple[str, float]]] = {}
        """By node: the complex tensors that it reads, and how far it follows each."""
        self.before: Layer | None = None
        """The layer that was read last."""
        self._entrances: dict[Base, Transform] = {}
        """Of spectra: the transforms of real tensors, of their whole lengths, that gave them."""
        self._leaving: tuple[Spectrum, Transform, float] | None = None

    def read(self, node: Node) -> float | None:  # noqa: C901  (one case after the other)
        """The bound of a real tensor that comes out; for a complex one its spectrum is kept, and this is None."""
        if node.op in TRANSFORMS:
            found = self._transformed(node)
        elif node.op == "view_as_complex.default":
            found = opened(self._real(node, "self"), 1.0, node.shape, range(len(node.shape)), self._ones(node.shape))
        elif node.op == "complex.default":
            found = self._joined(node)
        elif node.op == "view_as_real.default":
            found = self._left(node)
        elif node.op == "_conj.default":
            x = self._given(node, "self")
            self.edges[node.name] = [(node.args["self"].name, 1.0)]
            found = replace(x, conjugated=not x.conjugated)
        elif node.op in _MOVES:
            found = self._moved(node)
        elif node.op in _PRODUCTS:
            found = self._product(node)
        elif node.op in ("mul.Tensor", "mul.Scalar", "div.Tensor", "div.Scalar", "neg.default"):
            found = self._scaled(node)
        elif node.op in _SUMS:
            found = self._sum(node)
        elif node.op in ("cat.default", "stack.default"):
            found = self._together(node)
        else:
            raise self._unknown(node)
        self._forget(node)
        if isinstance(found, Spectrum) != (node.name in self.complexes):
            raise self._unknown(node)
        if not isinstance(found, Spectrum):
            return found
        if found.shape != tuple(node.shape):
            raise ValueError(f"expected a spectrum of shape {tuple(node.shape)}, got {found.shape}")
        self.spectra[node.name] = found
        return None

    def _forget(self, node: Node) -> None:
        """Free what no later node reads."""
        for name in node.refs():
            if self.last[name] == node.name:
                self.spectra.pop(name, None)

    def region(self, last: Node) -> tuple[list[Node], list[tuple[str, float]]]:
        """The nodes from what enters to the one where real numbers come out, and how far errors of each grow."""
        grown = {last.name: 1.0}
        for node in reversed(self.nodes):
            if node.name in grown:
                for name, factor in self.edges.get(node.name, ()):
                    grown[name] = up(grown.get(name, 0.0) + up(factor * grown[node.name]))
        nodes = [node for node in self.nodes if node.name in grown]
        return nodes, [(node.name, grown[node.name]) for node in reversed(nodes)]

    def layer(
        self, node: Node, value: Value, whole: float, nodes: list[Node], grown: list[tuple[str, float]]
    ) -> Layer | None:
        """The layer that ends with the node, if it has a transform of a real tensor and the way back at its ends."""
        leaving, self._leaving = self._leaving, None
        there = None if leaving is None else self._entrances.get(leaving[0].base)
        self._entrances.clear()
        if leaving is None or there is None:
            return None
        spectrum, back, reweighted = leaving
        return Layer(node, value, spectrum.base.source, spectrum, there, back, reweighted, whole, grown, nodes)

    def _transformed(self, node: Node) -> Spectrum | float:
        name = node.args["self"].name
        what = transform(node.op, node.args, self.shapes[name])
        norm = up(up(math.sqrt(what.count)) * what.factor) * (1 + 8 * UNIT)
        real = name not in self.spectra
        if what.half_before:
            x = self._complex(name)
            self.edges[node.name] = [] if real else [(name, up(norm * math.sqrt(2.0)))]
            reweighted = self._reweighted(x, what)
            self._leaving = x, what, reweighted
            return up(up(norm * x.gain()) * reweighted)
        if real:
            weights = self._ones(node.shape)
            if what.half_after:
                weights = weights * self._canonical(what, len(node.shape))
            # Padding with zeros and cropping bring nothing farther apart.
            found = opened(name, norm, node.shape, what.axes, weights)
            if what.lengths == tuple(self.shapes[name][axis] for axis in what.axes):
                self._entrances[found.base] = what
            return found
        if node.shape != self.shapes[name]:
            raise UnsupportedOp(f"expected {node.op} of complex numbers to keep their shape, got another length")
        x = self.spectra[name]
        self.edges[node.name] = [(name, norm)]
        weights = x.weights.amin(what.axes, keepdim=True).expand(x.shape)
        axes = {*what.axes, *(x.axes or ()), *varying(weights)}
        return opened(x.base.source, up(x.gain() * norm), x.shape, axes, weights)

    def _canonical(self, what: Transform, rank: int) -> torch.Tensor:
        """1 for the frequencies that are their own conjugates along the last axis, else 2; broadcasts."""
        length, axis = what.lengths[-1], what.axes[-1]
        weights = torch.full((length // 2 + 1,), 2.0, dtype=torch.float64, device=self.device)
        weights[0] = 1.0
        if length % 2 == 0:
            weights[-1] = 1.0
        return weights.reshape([-1 if k == axis else 1 for k in range(rank)])

    def _reweighted(self, x: Spectrum, what: Transform) -> float:
        """max (v / w)^(1/2), v the weights that the way back needs; entries beyond the length are cropped."""
        wanted, axis = self._canonical(what, len(x.shape)), what.axes[-1]
        kept = min(wanted.shape[axis], x.shape[axis])
        ratio = wanted.narrow(axis, 0, kept) / x.weights.narrow(axis, 0, kept)
        largest = float(ratio.max())
        return 1.0 if largest == 1.0 else up(math.sqrt(largest))

    def _joined(self, node: Node) -> Spectrum:
        """a + i b: of one real tensor, with a constant or with itself."""
        parts = [node.args["real"], node.args["imag"]]
        names = {part.name for part in parts if isinstance(part, Ref)}
        same = all(self._shape_of(part) == tuple(node.shape) for part in parts)
        if len(names) != 1 or names & set(self.spectra) or not same:
            raise UnsupportedOp("expected complex numbers of one real tensor and constants of its shape, got others")
        both = all(isinstance(part, Ref) for part in parts)
        return opened(
            names.pop(), up(math.sqrt(2.0)) if both else 1.0, node.shape, range(len(node.shape)), self._ones(node.shape)
        )

    def _left(self, node: Node) -> float:
        """Real and imaginary parts, as real numbers: without weights."""
        x = self._given(node, "self")
        self.edges[node.name] = [(node.args["self"].name, 1.0)]
        least = float(x.weights.min())
        return x.gain() if least == 1.0 else up(x.gain() / math.sqrt(least) * (1 + 4 * UNIT))

    def _moved(self, node: Node) -> Spectrum:
        x = self._given(node, "self")
        numbers = torch.arange(x.place.numel(), device=self.device).reshape(x.shape)
        places = call(node, {**node.args, "self": numbers})
        copies = float(places.flatten().bincount().max()) if places.numel() else 1.0
        self.edges[node.name] = [(node.args["self"].name, 1.0 if copies == 1.0 else up(math.sqrt(copies)))]
        return chosen(x, places, copies == 1.0)

    def _scaled(self, node: Node) -> Spectrum:
        """Entry by entry times constants."""
        if node.op == "neg.default":
            name, constant = node.args["self"].name, torch.tensor(-1.0, dtype=torch.complex128)
        else:
            names = ("self", "other")
            moving = [n for n in names if isinstance(node.args[n], Ref)]
            if len(moving) != 1 or (moving[0] == "other" and node.op.startswith("div")):
                raise self._unknown(node)
            name, other = node.args[moving[0]].name, node.args[names[moving[0] == "self"]]
            constant = self._constant(other)
        divided = node.op.startswith("div")
        if divided and not bool((constant != 0).all()):
            raise ValueError("expected divisors other than zero, got a zero")
        x, copies = broadcast(self._complex(name), node.shape)
        factor = (1 / constant if divided else constant).to(self.device)
        size = factor.abs()
        if not bool(torch.isfinite(size).all()):
            raise ValueError("expected divisors that have an inverse in float64, got one too close to zero")
        factor = factor.conj() if x.conjugated else factor
        largest = float(size.max()) if size.numel() else 0.0
        if name in self.spectra:
            self.edges[node.name] = [(name, up(up(largest * math.sqrt(copies)) * (1 + 16 * UNIT)))]
        rows, sizes = x.rows * factor[..., None], x.sizes * size[..., None]
        return replace(x, rows=rows, sizes=sizes, roundings=x.roundings + 24, moved=False, axes=None)

    def _sum(self, node: Node) -> Spectrum:
        alpha = float(node.args["alpha"])
        factors = {"self": 1.0, "other": -alpha if "sub" in node.op else alpha}
        if node.op.startswith("rsub"):
            factors = {"self": -alpha, "other": 1.0}
        moving = {name: factor for name, factor in factors.items() if isinstance(node.args[name], Ref)}
        for name in factors.keys() - moving.keys():
            self._constant(node.args[name])
        if len(moving) > 1 and any(node.args[name].name not in self.spectra for name in moving):
            raise UnsupportedOp("expected a sum of complex numbers, or with constants, got one with real activations")
        terms = []
        for argument, factor in moving.items():
            name = node.args[argument].name
            x, copies = broadcast(self._complex(name), node.shape)
            if name in self.spectra:
                stretch = up(up(abs(factor) * math.sqrt(copies)) * (1 + 4 * UNIT))
                self.edges.setdefault(node.name, []).append((name, stretch))
            if factor != 1.0:
                rows, sizes = x.rows * factor, x.sizes * abs(factor)
                x = replace(x, rows=rows, sizes=sizes, roundings=x.roundings + 4, moved=False, axes=None)
            terms.append(x)
        if len(terms) == 1:
            return terms[0]
        first, second = terms
        if not alike(terms) or not torch.equal(first.place, second.place):
            return begun_anew(terms, "sum", first.shape, torch.minimum(first.weights, second.weights))
        rows, sizes = first.rows + second.rows, first.sizes + second.sizes
        roundings = max(first.roundings, second.roundings) + 4
        return replace(first, rows=rows, sizes=sizes, roundings=roundings, moved=False, axes=None)

    def _together(self, node: Node) -> Spectrum:
        """Concatenated or stacked."""
        tensors = node.args["tensors"]
        if not all(isinstance(t, Ref) and t.name in self.spectra for t in tensors):
            raise UnsupportedOp("expected complex numbers computed from the input to be concatenated, got others too")
        parts = [self.spectra[t.name] for t in tensors]
        numbers, first = [], 0
        for part in parts:
            count = part.place.numel()
            numbers.append(torch.arange(first, first + count, device=self.device).reshape(part.shape))
            first += count
        places = call(node, {**node.args, "tensors": numbers})
        self.edges[node.name] = [(t.name, 1.0) for t in tensors]
        return concatenated(parts, places)

    def _product(self, node: Node) -> Spectrum:
        """Sums of products with constants: the matrices of all frequencies at once."""
        operands = node.args["tensors"] if node.op == "einsum.default" else list(node.args.values())[:2]
        moving = [k for k, operand in enumerate(operands) if isinstance(operand, Ref)]
        if len(operands) != 2 or len(moving) != 1:
            raise self._unknown(node)
        shapes = [self._shape_of(operand) for operand in operands]
        if node.op == "einsum.default":
            labels = einsum_labels(node.args["equation"], shapes)
            every = (labels[moving[0]], labels[1 - moving[0]], labels[2])
            numbers = {label: k for k, label in enumerate(dict.fromkeys(itertools.chain(*every)))}
            mine, its, kept = ([numbers[label] for label in some] for some in every)
        else:
            if min(map(len, shapes)) < 2:
                raise self._unknown(node)
            rank = max(map(len, shapes))
            # Axes before the matrices have one label each, aligned from the right; then rows, summed, columns.
            ends = ((rank, rank + 1), (rank + 1, rank + 2))
            both = [[*range(rank - len(s), rank - 2), *end] for s, end in zip(shapes, ends, strict=True)]
            mine, its, kept = both[moving[0]], both[1 - moving[0]], [*range(rank - 2), rank, rank + 2]
        lone = [k for k in mine if k not in kept and k not in its]
        if lone or len(set(mine)) < len(mine) or len(set(its)) < len(its):
            raise self._unknown(node)
        name, constant = operands[moving[0]].name, self._constant(operands[1 - moving[0]]).to(self.device)
        x = self._complex(name)
        summed = tuple(axis for axis, label in enumerate(mine) if label not in kept)
        if summed and not torch.equal(x.place.amin(summed), x.place.amax(summed)):
            rest = [axis for axis in range(len(mine)) if axis not in summed]
            weights = x.weights.amin(summed, keepdim=True).expand(x.shape)
            x = opened(x.base.source, x.gain(), x.shape, rest, weights)
        constant = constant.conj() if x.conjugated else constant
        return self._contracted(node, x, constant, (mine, its, kept), name)

    def _contracted(
        self, node: Node, x: Spectrum, constant: torch.Tensor, labels: tuple[list[int], ...], name: str
    ) -> Spectrum:
        mine, its, kept = labels
        last, size = 1 + max([*mine, *its, *kept]), constant.abs()
        refuse_large(math.prod(node.shape) * x.rows.shape[-1])
        rows = torch.einsum(constant, its, x.rows, [*mine, last], [*kept, last])
        sizes = torch.einsum(size, its, x.sizes, [*mine, last], [*kept, last])
        summed = tuple(axis for axis, label in enumerate(mine) if label not in kept)
        place = x.place.amin(summed) if summed else x.place
        over = tuple(axis for axis, label in enumerate(its) if label not in kept)
        ones = torch.ones_like(size.amin(over) if over else size)
        left, right = ([label for label in some if label in kept] for some in (mine, its))
        place = torch.einsum(place.double(), left, ones, right, kept).round().long()
        terms = math.prod(max(x.shape[axis], constant.shape[its.index(mine[axis])]) for axis in summed)
        terms *= math.prod(constant.shape[axis] for axis in over if its[axis] not in mine)
        if name in self.spectra:
            here, there = torch.ones(x.shape, dtype=torch.float64), torch.ones(node.shape, dtype=torch.float64)
            row = torch.einsum(size, its, here.to(size), mine, kept).max()
            column = torch.einsum(size, its, there.to(size), kept, mine).sum_to_size(x.shape).max()
            slack = 1 + gamma(2 * (size.numel() + row.numel()) + 16)
            self.edges[node.name] = [(name, up(up(math.sqrt(float(row) * float(column))) * slack))]
        roundings = x.roundings + 4 * terms + 16
        return Spectrum(x.base, place, rows, sizes, roundings, x.conjugated, moved=False)

    def _complex(self, name: str) -> Spectrum:
        """The spectrum; of a real tensor that becomes complex by what it meets, the tensor itself."""
        if name in self.spectra:
            return self.spectra[name]
        shape = self.shapes[name]
        return opened(name, 1.0, shape, range(len(shape)), self._ones(shape))

    def _ones(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.ones(tuple(shape), dtype=torch.float64, device=self.device)

    def _given(self, node: Node, argument: str) -> Spectrum:
        value = node.args[argument]
        if not isinstance(value, Ref) or value.name not in self.spectra or len(node.refs()) != 1:
            raise self._unknown(node)
        return self.spectra[value.name]

    def _real(self, node: Node, argument: str) -> str:
        value = node.args[argument]
        if not isinstance(value, Ref) or value.name in self.spectra:
            raise self._unknown(node)
        return value.name

    def _shape_of(self, operand: Any) -> tuple[int, ...]:
        return self.shapes[operand.name] if isinstance(operand, Ref) else tuple(torch.as_tensor(operand).shape)

    def _constant(self, value: Any) -> torch.Tensor:
        if refs_in(value):
            raise UnsupportedOp("expected constants beside complex numbers, got something computed from the input")
        constant = torch.as_tensor(value, dtype=torch.complex128)
        if not bool(torch.isfinite(constant).all()):
            raise ValueError("expected finite constants beside complex numbers, got NaN or inf")
        return constant

    def _unknown(self, node: Node) -> UnsupportedOp:
        return UnsupportedOp(
            f"{node.op.split('.')[0]} of complex numbers has no rule; known are transforms (fft, rfft and back), "
            f"products with constants and sums ({where(node)})"
        )
