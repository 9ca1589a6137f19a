"""The ball that all differences are images of, and what an operation does to it; proved in float64.

Note [One ball]
    For two network inputs at distance d let D(t) be the difference of a tensor t. The domain keeps matrices M(t) with
        D(t) = d s M(t) g    for one and the same vector g of all tensors, ||g|| <= 1.
    So linear maps, sums, concatenations and second uses of a tensor lose nothing: M(A t) = A M(t), M(t + u) = M(t) +
    M(u). An ellipsoid of differences is the image of a ball, D D^T <= (s d)^2 M M^T.

Note [A bend]
    Let w = f(v), every entry a function with slopes in [0, 1], and V = M(v). For every diagonal T > 0 the differences
    have w^T T (v - w) >= 0. With V the matrix, u in the ball and P = 2 T - T V V^T T,
        1 >= ||u||^2 - 2 w^T T (V u - w) = ||u - V^T T w||^2 + w^T P w.
    If P > 0 and R R^T >= P^-1, then p = u - V^T T w and q = R^-1 w lie in one ball, ||p||^2 + ||q||^2 <= 1, and
        w = R q,    u = p + V^T T R q:
    every other tensor has [M, M V^T T R] now, and w has [0, R]. Slopes in [a, b]: f(v) - a v has slopes in [0, b - a].
    An entry that is set to zero has slope 0. T = 1 / ||V||^2 gives R R^T <= ||V||^2, the product of norms; every T
    proves something, and who chose it how proves nothing. This is LipSDP (Fazlyab et al., NeurIPS 2019), solved forward
    as in ECLipsE (Xu and Sivaranjani, NeurIPS 2024) and in Syed and Hu (2025), with skips.

Note [Proof of R]
    With any floating-point R: if every eigenvalue of R^T P R is at least 1 - delta, then R^-1 exists and
    P^-1 <= R R^T / (1 - delta). R^T P R = 2 R^T T R - W^T W with W = V^T T R, and both products are computed; how far
    they are off, together with how far they are from the identity, bounds delta. s grows by (1 - delta)^(-1/2).

Note [Wide]
    Where only w is needed and V has more entries than generators, P^-1 = 1/2 T^-1 + 1/4 V K^-1 V^T with K = 1 -
    1/2 V^T T V, which is smaller (Woodbury): R = [(2 T)^(-1/2), 1/2 V Y] for Y Y^T >= K^-1, proved in the same way.

Note [Errors]
    The exact M(t) is 2^k (M + E): M is what is stored and ||E|| <= `error`. All matrices may have a batch of
    frequencies in front: then M is the operator that is block-circulant with these blocks, its norm is the largest of
    theirs, and bounds are of the largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import torch

from lipaudit.rounding import TINY, UNIT, WIDE, gamma, up, wide

_APART = 2.0**13
"""See `Ball.compress`."""
_UNDERFLOW = 1e-140
_LEAST = 0.5
"""delta of Note [Proof of R] has to stay below that."""


class Unfit(Exception):
    """These multipliers prove nothing: P is not positive definite, or too close to it for float64."""


@dataclass(frozen=True, eq=False)
class Image:
    """See Note [Errors]; `matrix` is (frequencies, entries, generators), or None for the identity."""

    matrix: torch.Tensor | None
    exponent: int = 0
    error: float = 0.0


@dataclass(frozen=True, eq=False)
class Matrix:
    """A linear map: (frequencies or 1, out, in)."""

    entries: torch.Tensor
    norm: float = math.inf
    """Bound of the norm of the exact map, at every frequency."""
    error: float = 0.0
    """Bound of the norm of the difference to the exact one, at every frequency."""
    _copies: dict[Any, torch.Tensor] = field(default_factory=dict)

    def of(self, like: torch.Tensor, pick: torch.Tensor | None) -> torch.Tensor:
        """The entries in the type of `like`, at the frequencies of that index."""
        key = (like.dtype, None if pick is None else id(pick))
        if key not in self._copies:
            some = self.entries if pick is None or len(self.entries) == 1 else self.entries[pick]
            self._copies.clear()
            self._copies[key] = some.to(like.dtype)
        return self._copies[key]


class Ball:
    """The tensors that are still needed, as images of one ball. `prove=False`: without errors, for choosing T."""

    def __init__(
        self, name: str, size: int, like: torch.Tensor, *, prove: bool = True, pick: torch.Tensor | None = None
    ) -> None:
        """Of one tensor of so many entries, whose differences are the ball itself; `like` has the type of matrices.

        `pick`: the frequencies that are looked at, where nothing is proved.
        """
        self.pick = pick
        self.images: dict[str, Image] = {name: Image(None)}
        self.scale = Decimal(1)
        self.prove = prove
        self._one = torch.eye(size, dtype=like.dtype, device=like.device)[None]

    def linear(self, source: str, target: str, matrix: Matrix) -> None:
        image, a = self.images[source], matrix.of(self._one, self.pick)
        if image.matrix is None:
            self._keep(target, a, image.exponent, matrix.error)
            return
        product = a @ image.matrix
        error = 0.0
        if self.prove:
            length = largest(image.matrix)
            error = matrix.norm * image.error + matrix.error * (length + image.error)
            error = error * (1 + 1e-12) + lost(a.shape[-1], a) * largest(a) * length * (1 + 1e-9) + TINY
        self._keep(target, product, image.exponent, error)

    def rename(self, source: str, target: str) -> None:
        self.images[target] = self.images[source]

    def rows(self, source: str, target: str, index: torch.Tensor) -> None:
        """Some entries of a tensor; -1 is an entry that is zero."""
        image = self.images[source]
        m = self.written(image)
        padded = torch.cat([m, m.new_zeros(m.shape[0], 1, m.shape[2])], 1) if bool((index < 0).any()) else m
        copies = float(torch.bincount(index[index >= 0]).max()) if bool((index >= 0).any()) else 0.0
        self.images[target] = Image(padded[:, index], image.exponent, up(image.error * up(math.sqrt(copies))))

    def scaled(self, source: str, target: str, factor: torch.Tensor, error: float) -> None:
        """Each entry times its factor, which is off by a relative `error`."""
        image = self.images[source]
        m = self.written(image)
        product = factor.to(m.real.dtype)[:, None] * m
        off = 0.0
        if self.prove:
            most = float(factor.abs().max()) if len(factor) else 0.0
            off = up(most * image.error * (1 + error)) + (error + 2 * UNIT) * largest(product) * (1 + 1e-6)
        self._keep(target, product, image.exponent, off)

    def add(self, first: str, second: str, target: str, factor: float = 1.0) -> None:
        """first + factor second."""
        a, b = self.images[first], self.images[second]
        m, n = self.written(a), self.written(b)
        top = max(a.exponent, b.exponent)
        m, n = m * _power(a.exponent - top), n * (factor * _power(b.exponent - top))
        both = m + n
        error = 0.0
        if self.prove:
            error = a.error * _power(a.exponent - top) + b.error * abs(factor) * _power(b.exponent - top)
            error = error * (1 + 1e-12) + 3 * UNIT * (largest(m) + largest(n)) + TINY
        self._keep(target, both, top, error)

    def stack(self, sources: Sequence[str], target: str) -> None:
        """All entries of several tensors, one after the other."""
        images = [self.images[name] for name in sources]
        top = max(image.exponent for image in images)
        parts = [self.written(image) * _power(image.exponent - top) for image in images]
        error = math.hypot(*(image.error * _power(image.exponent - top) for image in images)) * (1 + 1e-12)
        self._keep(target, torch.cat(_alike(parts), 1), top, error + TINY)

    def bend(
        self,
        source: str,
        target: str,
        choose: Callable[[torch.Tensor], torch.Tensor],
        slopes: tuple[float, float],
        *,
        again: bool,
    ) -> None:
        """A function of each entry with slopes in [low, low + rise]; `choose` gives T > 0 for V. See Note [A bend].

        `again`: the source is still needed afterwards.
        """
        low, rise = slopes
        image = self.images[source]
        v = self.written(image)
        t = choose(v)
        if not bool(((t > 0) & torch.isfinite(t)).all()):
            raise Unfit("multipliers that are not positive numbers")
        if len(self.images) == 1 and not again and not low and v.shape[1] > v.shape[2]:
            self.images = {target: replace(self._wide(v, t, image.error), exponent=image.exponent)}
            self._times(target, rise)
            return
        r, w, off = self._factor(v, t, image.error)
        if not again and not low:
            del self.images[source]
        self.images = {name: self._followed(other, w, off) for name, other in self.images.items()}
        bent = torch.cat([torch.zeros_like(v), r], 2) if self.images else r
        self.images[target] = Image(bent, image.exponent)
        if low:
            self.add(source, target, target, rise / low)
        self._times(target, low or rise)
        if low and not again:
            del self.images[source]

    def keep(self, names: Container[str]) -> None:
        """Forget all other tensors."""
        self.images = {name: image for name, image in self.images.items() if name in names}

    def compress(self) -> None:
        """Fewer generators, if there are more than entries: S = R Q^T + E with Q nearly orthogonal.

        Then g' = Q^T g is as long as g at most, up to the error of Q; and what the errors make of g is the image of a
        vector h that is added to the ball, of length 1 / `_APART`, if the errors count `_APART` times.
        """
        names = list(self.images)
        parts = [self.written(image) for image in self.images.values()]
        s = torch.cat(_alike(parts), 1)
        if s.shape[2] <= 1.5 * s.shape[1]:
            return
        q, r = torch.linalg.qr(s.mH)
        small = r.mH.contiguous()
        grown, off = 1.0, 0.0
        if self.prove:
            gram = q.mH @ q
            gram.diagonal(dim1=-2, dim2=-1).sub_(1.0)
            length = largest(q)
            slack = largest(gram) + (lost(q.shape[1], q) + 4 * UNIT) * length * length
            product = small @ q.mH
            off = largest(s - product) + (lost(q.shape[2], q) + 2 * UNIT) * largest(small) * length + TINY
            grown = 1.0 + slack + len(names) / _APART**2
        first = 0
        for name, part in zip(names, parts, strict=True):
            last = first + part.shape[1]
            error = (self.images[name].error + off) * _APART * (1 + 1e-9) if self.prove else 0.0
            self.images[name] = replace(self.images[name], matrix=small[:, first:last], error=error)
            first = last
        self._grow(up(math.sqrt(grown * (1 + 1e-15))))

    def _factor(self, v: torch.Tensor, t: torch.Tensor, error: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        """R and W = V^T T R of Note [A bend], and the error of W; the scale of the ball grows by what R needs."""
        r = _inverse_root(torch.diag(2 * t).to(v) - t[:, None] * (v @ v.mH) * t)
        scaled = t[:, None] * r
        w = v.mH @ scaled
        if not self.prove:
            return r, w, 0.0
        # Rounding: scaled is off by u relatively, each product by `lost`.
        off = (error + (lost(v.shape[1], v) + 2 * UNIT) * largest(v)) * largest(scaled) * (1 + 1e-9) + TINY
        root = largest((2 * t).sqrt()[:, None] * r) * (1 + 1e-9)
        self._grow_for(r.mH @ (2 * scaled), (lost(v.shape[1], v) + 4 * UNIT) * root * root, w, off)
        return r, w, off

    def _wide(self, v: torch.Tensor, t: torch.Tensor, error: float) -> Image:
        """What becomes of V alone where it has more entries than generators; see Note [Wide]."""
        root = t.sqrt()
        half = (root * math.sqrt(0.5))[:, None] * v
        one = torch.eye(v.shape[2], dtype=v.dtype, device=v.device)[None]
        y = _inverse_root(one - half.mH @ half)
        straight = torch.diag((math.sqrt(0.5) / root) * (1 + 16 * UNIT)).to(v).expand(v.shape[0], -1, -1)
        bent = Image(torch.cat([straight, 0.5 * (v @ y)], 2))
        if not self.prove:
            return bent
        most, y_size = float(root.max()), largest(y)
        # (T / 2)^(1/2) V Y: the roots are off by a few u, V by its error.
        w = half @ y
        off = (most * error + (lost(v.shape[2], v) + 8 * UNIT) * largest(half)) * y_size * (1 + 1e-9) + TINY
        self._grow_for(y.mH @ y, (lost(v.shape[2], v) + 4 * UNIT) * y_size * y_size, w, off)
        lost_here = (0.5 * error + (lost(v.shape[2], v) + 2 * UNIT) * largest(v)) * y_size * (1 + 1e-9) + TINY
        return replace(bent, error=lost_here)

    def _grow_for(self, first: torch.Tensor, slack: float, w: torch.Tensor, off: float) -> None:
        """Note [Proof of R]: `first` - W^T W is the identity but for delta; `first` is off by `slack`, W by `off`."""
        second, w_size = w.mH @ w, largest(w)
        rest = first - second
        rest.diagonal(dim1=-2, dim2=-1).sub_(1.0)
        delta = largest(rest) + 4 * UNIT * (largest(first) + largest(second) + math.sqrt(rest.shape[-1]))
        delta += slack + lost(w.shape[1], w) * w_size * w_size + 2 * off * w_size + off * off
        delta *= 1 + 1e-9
        if not delta < _LEAST:
            raise Unfit("not positive definite enough for float64")
        self._grow(up(up(1.0 / math.sqrt(up(1.0 - delta) - 4 * UNIT)) * (1 + 8 * UNIT)))

    def _followed(self, image: Image, w: torch.Tensor, off: float) -> Image:
        """What becomes of another tensor: [M, M W], W off by `off`."""
        m = self.written(image)
        more = m @ w
        error = 0.0
        if self.prove:
            m_size, w_size = largest(m), largest(w)
            error = image.error * (1 + w_size + off) + m_size * off + lost(m.shape[2], m) * m_size * w_size
            error = up(error * (1 + 1e-9)) + TINY
        return Image(torch.cat(_alike([m, more]), 2), image.exponent, error)

    def _times(self, name: str, factor: float) -> None:
        """The factor as a mantissa, whose product is rounded, and an exponent."""
        mantissa, exponent = math.frexp(factor)
        image = self.images[name]
        assert image.matrix is not None
        if mantissa in (0.5, -0.5):
            m = image.matrix if mantissa > 0 else -image.matrix
            self.images[name] = replace(image, matrix=m, exponent=image.exponent + exponent - 1)
            return
        m = image.matrix * mantissa
        error = abs(mantissa) * image.error + 2 * UNIT * largest(image.matrix) + TINY if self.prove else 0.0
        self._keep(name, m, image.exponent + exponent, error)

    def written(self, image: Image) -> torch.Tensor:
        return self._one if image.matrix is None else image.matrix

    def _keep(self, name: str, matrix: torch.Tensor, exponent: int, error: float) -> None:
        """With entries of moderate size: a power of two is exact, but for what underflows."""
        low, high = torch.aminmax(_parts(matrix.detach())) if matrix.numel() else (0.0, 0.0)
        top = max(-float(low), float(high))
        if not math.isfinite(top) or not math.isfinite(error):
            raise Unfit("numbers beyond the range of float64")
        shift = math.frexp(top)[1] if top else 0
        half = shift // 2
        scaled = matrix * 2.0**-half * 2.0 ** (half - shift) if shift else matrix
        small = 0.0 if not self.prove else up(error * 2.0**-half * 2.0 ** (half - shift)) + (TINY if error else 0.0)
        if self.prove and shift > 0:
            small += TINY
        self.images[name] = Image(scaled, exponent + shift, small)

    def _grow(self, factor: float) -> None:
        self.scale = WIDE.multiply(self.scale, wide(factor))


def _inverse_root(p: torch.Tensor) -> torch.Tensor:
    """About R with R R^T = P^-1; raises `Unfit` where P is not positive definite."""
    lower, info = torch.linalg.cholesky_ex(p)
    one = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device).expand_as(lower)
    r = torch.linalg.solve_triangular(lower, one, upper=False).mH
    if bool(info.any()) or not math.isfinite(float(r.detach().abs().amax())):
        raise Unfit("not positive definite")
    return r


def _alike(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """With as many frequencies as any of them: those of one are the same everywhere."""
    most = max(len(matrix) for matrix in matrices)
    return [matrix.expand(most, -1, -1) for matrix in matrices]


def _power(exponent: int) -> float:
    """2^exponent for exponent <= 0; 0 below the range."""
    return 2.0**exponent if exponent > -1000 else 0.0


def largest(x: torch.Tensor) -> float:
    """Bound of the Frobenius norm, of that of the frequency where it is largest; raises `Unfit` beyond 1e150."""
    if not x.numel():
        return 0.0
    real = _parts(x.detach()).flatten(1)
    # A sum of squares and a root; squares that underflow are below the square of what is added.
    norm = float(torch.linalg.vector_norm(real, dim=1).max())
    if not norm < 1e150:
        raise Unfit("numbers beyond the range of float64")
    return up(norm * (1 + 2 * gamma(real.shape[1] + 8))) + _UNDERFLOW


def _parts(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def lost(count: int, like: torch.Tensor) -> float:
    """How far, relatively to the absolute values, a sum of so many products is off; of complex ones, of both parts."""
    return 1.5 * gamma(2 * count + 8) if like.is_complex() else gamma(count + 4)
