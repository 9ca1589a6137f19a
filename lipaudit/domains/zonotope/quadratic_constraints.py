"""All symbols taken together, in one ellipsoid: between them stand the slopes of ReLU, layer after layer.

Note [Sectors]
    Let c be what an operand z of ReLU is at the centre of the ball. Over its range, f(z) - f(c) lies between two
    multiples of z - c, say (middle +- half) (z - c). The form says f(z) = slope z + shift + error e, so with
        eta = e + t,    t = (slope c + shift - f(c)) / error,
    and h = (d, eta) the vector of all unknowns, z - c is linear in h, z - c = <z, h>, and
        <y, h>^2 <= <half z, h>^2,    <y, h> = error eta + (slope - middle) <z, h>.
    Multiplied by any T >= 0 and added up over all ReLUs, with ||d||_2 <= 1:
        h^T B h <= 1,    B = P + Y^T T Y - Z^T T Z,    P the identity of d, rows of Z multiplied by half.
    If B = L L^T, then |<g, h>| = |<L^-1 g, L^T h>| <= ||L^-1 g||_2 for every g: of ranges inside the network and of
    differences of logits alike, and all at once. A symbol of anything else is only known to be at most 1: it stands in
    Y alone, and its multiplier joins the right side. The multipliers are chosen by gradients; each choice is a proof.
    What the neurons of all layers do is weighed together. Where the ball is so large that most signs are open, bounds
    that take the symbols one by one say nothing any more, and this still does.

Note [Roundings of sectors]
    Rows of forms are exact by definition (Note [Affine forms]), and so are the float64 Y, Z and T. What z - c is off by
    (roundings of the anchor c, the remainder), what rounding lost in Y and Z, and t, are known numbers; they join the
    right side, as every |<z, h>| is known to be at most so much. So do the differences of B to what was computed and of
    that to L L^T: with |h| <= far, |h^T E h| <= far^T |E| far. What L^-1 g is off by is seen by multiplying again.

Note [Narrow inputs]
    Where all that follows goes through k tensor entries with k well below the number of coordinates of d, only a few
    directions of d count. Q is an orthonormal basis of them, up to rounding, and d' = Q^T d stands for d:
        <row, d> = <r, d'> + <row - Q r, d>,    |<row - Q r, d>| <= ||row - Q r||_2,    ||d'||^2 <= ||Q||^2.
    The r are whatever numbers Q^T row rounds to; the rest is computed, and joins what an entry is off by. So nothing
    depends on what Q is but ||Q||^2, of which ||Q^T Q - I||_F + 1 is a bound.

Source: quadratic constraints for slopes are M. Fazlyab et al., Efficient and Accurate Estimation of Lipschitz Constants
for Deep Neural Networks (LipSDP), NeurIPS 2019; around a point and over a range, after M. Fazlyab, M. Morari and
G. Pappas, Safety Verification and Robustness Analysis of Neural Networks via Quadratic Constraints, IEEE TAC 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch

from lipaudit.domains.zonotope.affine_form import Form
from lipaudit.domains.zonotope.backward import LOST_IN_SQUARES
from lipaudit.domains.zonotope.ball_constraints import FARTHEST, largest_about, off_line, secants
from lipaudit.domains.zonotope.relaxations import Band
from lipaudit.rounding import TINY, gamma

_TINY_BEND = 1e-6
"""ReLUs that bend by less than this share of what they read count as symbols of anything else."""
_TINY_OFF = 1e-8
"""And those whose operands are known no better than this share of how far they go."""
_FIRST, _FIRST_BOXED = 0.2, 1e-3
"""Shares that multipliers begin with: of what B has left, and of its right side."""
_HALVINGS = 60
_LEAST = 1e-100
_RATE = 0.3
_STILL = 1e-7
"""Multipliers whose gradients are below this, in shares of a bound, hardly move."""
_SLOWER = 0.7
_PATIENCE, _FALLING = 25, 0.97
"""In so many steps the largest bound has to fall below this share of what it was."""
_NARROW = 0.7
"""A basis is used where it has at most this share of the coordinates."""
_ABREAST_COLUMNS = 256
_ABREAST = 32
"""Sums of rows with random factors that stand for all rows of a layer while multipliers are chosen."""


@dataclass(frozen=True, eq=False)
class _Block:
    """The symbols of one layer: Y = (aside, diag(own)) and Z = (z, 0), (symbols, unknowns so far).

    A symbol of its own is all that a row of Y has beyond the unknowns `before`, and Z has nothing there.
    """

    aside: torch.Tensor
    """(symbols, unknowns before)."""
    own: torch.Tensor
    z: torch.Tensor
    """(symbols, unknowns before)."""

    @property
    def unknowns(self) -> int:
        """Its own among them."""
        return self.aside.shape[1] + len(self.own)

    def add_to(self, matrix: torch.Tensor, t: torch.Tensor) -> None:
        """Add Y^T T Y - Z^T T Z to the lower triangle of `matrix`, up to rounding."""
        before, after = self.aside.shape[1], self.unknowns
        less, more = self._ends
        product = (less.mT * t) @ more
        matrix[:before, :before] += product.add_(product.mT.clone()).div_(2)
        matrix[before:after, :before] += (t * self.own)[:, None] * self.aside
        matrix[before:after, before:after].diagonal().add_(t * self.own.square())

    def sizes(self, far: torch.Tensor) -> torch.Tensor:
        """(|Y| + |Z|) far."""
        before = self.aside.shape[1]
        return (self.aside.abs() + self.z.abs()) @ far[:before] + self.own.abs() * far[before : self.unknowns]

    def slopes(self, solved: torch.Tensor) -> torch.Tensor:
        """(Z h)^2 - (Y h)^2 for every column h of `solved`."""
        before = self.aside.shape[1]
        y = self.aside @ solved[:before] + self.own[:, None] * solved[before : self.unknowns]
        return (self.z @ solved[:before]).square() - y.square()

    @cached_property
    def _ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.aside - self.z, self.aside + self.z

    @cached_property
    def rough(self) -> _Block:
        """Itself in single precision: enough to choose by."""
        return _Block(self.aside.float(), self.own.float(), self.z.float())


@dataclass(frozen=True)
class Anchored:
    """Entries of a form: within `off` of c + <rows, h>."""

    c: torch.Tensor
    rows: torch.Tensor
    """(entries, unknowns)."""
    off: torch.Tensor


@dataclass
class Sectors:
    """See Note [Sectors]. `inputs` is the number of unknowns that share the ball, which lies within that of L2."""

    inputs: int
    device: torch.device
    blocks: list[_Block] = field(default_factory=list, init=False)
    basis: torch.Tensor | None = field(default=None, init=False)
    """Q of Note [Narrow inputs], (rows that share the ball, inputs)."""
    multipliers: torch.Tensor = field(init=False)
    shift: torch.Tensor = field(init=False)
    """t of every symbol."""
    _longest: float = field(default=1.0, init=False)
    """At least ||Q||^2."""
    beyond: torch.Tensor = field(init=False)
    """What a symbol's constraint may be exceeded by, times its multiplier."""

    def __post_init__(self) -> None:
        self.multipliers, self.shift, self.beyond = torch.zeros(3, 0, dtype=torch.float64, device=self.device)
        self._random = torch.Generator().manual_seed(0)

    @property
    def ball(self) -> float:
        """What ||d||^2 is at most on the right side; a box has no d."""
        return self._longest if self.inputs else 0.0

    @property
    def far(self) -> torch.Tensor:
        """What each unknown is at most."""
        return torch.cat([self.shift.new_full((self.inputs,), self._longest), 1 + self.shift.abs()]) * (1 + gamma(4))

    def narrow(self, form: Form, moving: torch.Tensor) -> None:
        """From here on everything depends on the entries of `form` that are `moving`: see Note [Narrow inputs]."""
        if self.blocks or self.basis is not None or int(moving.sum()) > _NARROW * self.inputs:
            return
        basis, _ = torch.linalg.qr(form.rows[: self.inputs].flatten(1)[:, moving.flatten()])
        gram = basis.mT @ basis
        gram.diagonal().sub_(1.0)
        rounding = gamma(len(basis) + 8) * float(basis.square().sum())
        excess = (float(torch.linalg.vector_norm(gram)) + rounding) * (1 + gamma(gram.numel() + 8))
        if excess < _TINY_OFF:  # it is a number
            self.basis, self.inputs, self._longest = basis, basis.shape[1], 1 + excess

    def _turned(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of d in the unknowns that stand for it, and how far <row, d> may be from that."""
        if self.basis is None:
            return rows, rows.new_zeros(rows.shape[1])
        turned = self.basis.mT @ rows
        missed = rows - self.basis @ turned
        sizes = torch.linalg.vector_norm(rows, dim=0)
        rounding = gamma(len(rows) + 64) * (sizes + math.sqrt(self.inputs) * torch.linalg.vector_norm(turned, dim=0))
        missed = (torch.linalg.vector_norm(missed, dim=0) + 2 * rounding) * (1 + gamma(len(rows) + 8))
        return turned, missed + LOST_IN_SQUARES

    def anchored(self, form: Form, places: torch.Tensor) -> Anchored:
        """The entries at `places` of a form whose symbols are all known here."""
        rows, centre = form.rows.flatten(1)[:, places], form.centre.flatten()[places]
        n, t = form.inputs, self.shift[: len(form.rows) - form.inputs - 1, None]
        directions, missed = self._turned(rows[:n])
        symbols, known = rows[n + 1 :], rows[n]
        assert len(t) == len(symbols), "a symbol that nobody has told of"
        c = centre + known - (t * symbols).sum(0)
        sizes = centre.abs() + known.abs() + (t * symbols).abs().sum(0)
        off = gamma(len(rows) + 8) * sizes + (form.remainder + missed) * (1 + gamma(4)) + TINY
        return Anchored(c, torch.cat([directions, symbols]).mT.contiguous(), off)

    def add_boxed(self, error: torch.Tensor, reach: float) -> None:
        """The next symbols, of which nothing is known but |e| <= 1.

        `error` is what they stand for, `reach` about how far that goes which they are added to: for a first multiplier.
        """
        count, before = len(error), len(self.shift) + self.inputs
        nothing = error.new_zeros(count, before)
        block = _Block(nothing, torch.ones_like(error), nothing)
        self._add(block, _share(error, reach), torch.zeros_like(error), torch.ones_like(error))

    def add_relu(self, form: Form, places: torch.Tensor, ends: tuple[torch.Tensor, torch.Tensor], band: Band) -> None:
        """The next symbols, which ReLU needs at these `places` of its operand `form`.

        `ends` is the range of the operand, `band` what it lies in.
        """
        low, high, slope, shift, error = (
            value.flatten()[places] for value in (*ends, band.slope, band.shift, band.error)
        )
        at = self.anchored(form, places)
        c = torch.minimum(torch.maximum(at.c, low), high)
        unsure = at.off + (c - at.c).abs() * (1 + gamma(4))
        flattest, steepest = secants(c, low, high)
        middle = (flattest + steepest) / 2
        half = torch.maximum(steepest - middle, middle - flattest) + gamma(8)
        t, lost = off_line(c, slope, shift, error)
        length, multipliers = self._first(at.rows, half)
        boxed = (error <= _TINY_BEND * (c.abs() + high - low)) | ~(t.abs() <= FARTHEST) | (unsure > _TINY_OFF * length)
        aside, before = slope - middle, len(self.shift) + self.inputs
        z = error.new_zeros(len(places), before)
        y, own = z.clone(), error
        z[:, : at.rows.shape[1]] = half[:, None] * at.rows
        y[:, : at.rows.shape[1]] = aside[:, None] * at.rows
        # How far <y, h> may be beyond +-<z, h>, and how far that goes.
        rounded = gamma(4) * (at.rows.abs() @ self.far[: at.rows.shape[1]])
        off = (half + aside.abs() + gamma(4)) * unsure + 2 * rounded + lost
        most = half * (torch.maximum(high - c, c - low) + unsure + rounded)
        beyond = (2 * off * most + off.square()) * (1 + gamma(16)) + TINY
        if bool(boxed.any()):  # of these nothing but |e| <= 1 counts
            z[boxed], y[boxed], own = 0.0, 0.0, error.masked_fill(boxed, 1.0)
            t, beyond = t.masked_fill(boxed, 0.0), beyond.masked_fill(boxed, 1.0)
            multipliers = torch.where(boxed, _share(error, float((high - low).mean())), multipliers)
        self._add(_Block(y, own, z), multipliers, t, beyond)

    def _add(self, block: _Block, multipliers: torch.Tensor, shift: torch.Tensor, beyond: torch.Tensor) -> None:
        self.blocks.append(block)
        old = self.multipliers
        self.shift, self.beyond = torch.cat([self.shift, shift]), torch.cat([self.beyond, beyond])
        for _ in range(_HALVINGS):
            self.multipliers = torch.cat([old, multipliers])
            if self._factor(block.unknowns, self.multipliers) is not None:
                return
            multipliers = multipliers / 2

    def _first(self, rows: torch.Tensor, half: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """About how far the entries of these rows go, and multipliers that leave most of B as it is."""
        factor = self._factor(rows.shape[1], self.multipliers)
        if factor is None:
            return torch.zeros_like(half), torch.ones_like(half)
        moves = torch.linalg.solve_triangular(factor, rows.mT, upper=False)
        length = torch.linalg.vector_norm(moves, dim=0)
        scale = length.clamp_min(_TINY_BEND * float(length.max()) + _LEAST)
        return length, _FIRST / (half * scale).square() / max(largest_about(moves / scale) ** 2, _LEAST)

    def _blocks(self, unknowns: int) -> list[tuple[_Block, slice]]:
        """The blocks of the first so many unknowns, and where their multipliers stand."""
        found, done = [], 0
        for block in self.blocks:
            if block.unknowns > unknowns:
                break
            found.append((block, slice(done, done + len(block.own))))
            done += len(block.own)
        return found

    def _matrix(self, unknowns: int, multipliers: torch.Tensor) -> torch.Tensor:
        """B for the first so many unknowns, up to rounding, in the precision of the multipliers: its lower triangle."""
        matrix = multipliers.new_zeros(unknowns, unknowns)
        matrix.diagonal()[: self.inputs] = 1.0
        for block, part in self._blocks(unknowns):
            block = block.rough if multipliers.dtype == torch.float32 else block
            block.add_to(matrix, multipliers[part])
        return matrix

    def _factor(self, unknowns: int, multipliers: torch.Tensor) -> torch.Tensor | None:
        return _cholesky(self._matrix(unknowns, multipliers))

    def reach(self, rows: torch.Tensor) -> torch.Tensor:
        """Upper bounds of |<row, h>| for each of the `rows`, (entries, unknowns): proved. inf where there is none."""
        unknowns = rows.shape[1]
        t, far = self.multipliers[: unknowns - self.inputs], self.far[:unknowns]
        matrix = self._matrix(unknowns, t)
        factor = _cholesky(matrix)
        if factor is None:
            return rows.new_full((len(rows),), math.inf)
        right, sizes = self.ball + float(t @ self.beyond[: len(t)]) * (1 + gamma(len(t) + 4)), float(self.inputs)
        for block, part in self._blocks(unknowns):
            sizes += float(t[part] @ block.sizes(far).square())
        along = factor.abs().mT @ far
        sizes += float(along.square().sum())
        square = right + _left(matrix, factor, far) + gamma(4 * unknowns + 64) * sizes
        length = math.sqrt(square * (1 + gamma(4 * unknowns + 64))) * (1 + gamma(4))
        moves = torch.linalg.solve_triangular(factor, rows.mT, upper=False)
        missed = rows.mT - factor @ moves
        lost = gamma(unknowns + 8) * (far @ rows.mT.abs() + along @ moves.abs())  # along = far^T |L|
        missed = (far @ missed.abs() + lost) * (1 + gamma(2 * unknowns + 16))
        norm = torch.linalg.vector_norm(moves, dim=0) + LOST_IN_SQUARES
        found = norm * length * (1 + gamma(unknowns + 8)) + missed + TINY
        return torch.where(torch.isfinite(found), found, math.inf)

    def improve(self, rows: torch.Tensor, steps: int, *, enough: float | None = None) -> None:
        """Choose multipliers under which the bounds of these `rows` are small, on the whole.

        With `enough`, ends where all of them are about so small, or where the largest hardly falls any more.
        """
        unknowns = rows.shape[1]
        count = unknowns - self.inputs
        if not count or not len(rows):
            return
        begun = self.multipliers[:count].log()
        factor = self._factor(unknowns, begun.exp().float())
        if factor is None:
            return
        beyond, rows = self.beyond[:count].float(), rows.float()
        sketched = enough is None and len(rows) > _ABREAST
        if sketched:
            moves = torch.linalg.solve_triangular(factor, rows.mT, upper=False)
            rows = rows / torch.linalg.vector_norm(moves, dim=0).clamp_min(1e-30)[:, None]
        now, kept, rate = begun.float(), begun.float(), _RATE
        adam = _adam(now, rate)
        worst: list[float] = []
        best = None
        for _ in range(steps):
            t, factor = now.exp(), self._factor(unknowns, now.exp())
            if factor is None:  # too far: most of the way back, and slower from there
                now, rate = kept + (now - kept) * 0.3, rate * _SLOWER
                adam = _adam(now, rate)
                continue
            kept = now.clone()
            some = rows
            if sketched:
                some = torch.randn(_ABREAST, len(rows), dtype=rows.dtype, generator=self._random).to(rows.device) @ rows
            right = self.ball + float(t @ beyond)
            solved = torch.cholesky_solve(some.mT, factor)
            values = (some.mT * solved).sum(0).clamp_min(1e-30) * right
            if enough is not None:
                worst.append(float(values.max()) ** 0.5)
                best = now.clone() if worst[-1] == min(worst) else best
                before = worst[-_PATIENCE] if len(worst) >= _PATIENCE else math.inf
                if worst[-1] <= enough or worst[-1] > _FALLING * before:
                    break
            weights = right / values / len(values)
            now.grad = t * (beyond / right + self._pull(unknowns, solved, weights))
            adam.step()
        old = self.multipliers
        self.multipliers = torch.cat([(kept if best is None else best).double().exp(), old[count:]])
        if self._factor(self.inputs + len(old), self.multipliers) is None:
            self.multipliers = old  # what came later was weighed against these

    def _pull(self, unknowns: int, solved: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The gradient of the weighted sum of bounds, by the multipliers."""
        found = []
        for block, _ in self._blocks(unknowns):
            found.append(block.rough.slopes(solved) @ weights)
        return torch.cat(found)


def _adam(now: torch.Tensor, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam([now], lr=rate, betas=(0.9, 0.95), eps=_STILL)


def _left(matrix: torch.Tensor, factor: torch.Tensor, far: torch.Tensor) -> float:
    """far^T |matrix - L L^T| far, up to rounding, of the lower triangle mirrored."""
    total = 0.0
    for start in range(0, len(far), _ABREAST_COLUMNS):
        stop = min(start + _ABREAST_COLUMNS, len(far))
        # Of these columns the rows below: there L has nothing right of the last of them.
        left = (matrix[start:, start:stop] - factor[start:, :stop] @ factor[start:stop, :stop].mT).abs()
        square = left[: stop - start].tril()
        square = square + square.tril(-1).mT
        total += float(far[start:stop] @ (square @ far[start:stop]))
        total += 2 * float(far[stop:] @ (left[stop - start :] @ far[start:stop]))
    return total


def _cholesky(matrix: torch.Tensor) -> torch.Tensor | None:
    """L L^T = `matrix`, up to rounding; None if there is none."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return None if int(info) or not bool(torch.isfinite(factor).all()) else factor


def _share(error: torch.Tensor, reach: float) -> torch.Tensor:
    """First multipliers of symbols that are only known to be at most 1."""
    return _FIRST_BOXED * (error / max(reach, _LEAST)).clamp(1e-9, 1.0) / len(error)
