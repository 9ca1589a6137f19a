"""The mutants: one wrong line each, of the kind that people write, and the tests that ought to see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A textual replacement in one file; `old` occurs there exactly once."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    quick: bool = False


OWN = ("tests/mutation/test_exact.py",)
"""Values worked out by hand, where no other test sees the last digits."""
NORMS = ("tests/norms/test_dense.py", "tests/norms/test_known.py", "tests/norms/test_methods.py")
CONV = ("tests/norms/test_known.py", "tests/norms/test_torus.py", "tests/norms/test_methods.py")
RULES = (*OWN, "tests/domains/test_rules.py", "tests/domains/test_reviewed_rules.py")
BOUNDED = ("tests/domains/test_bounded_rules.py",)
RANGES = ("tests/domains/test_ranges.py", "tests/domains/test_ranges_pointwise.py")
ZONOTOPE = (
    "tests/domains/test_zonotope.py",
    "tests/domains/test_zonotope_traps.py",
    "tests/domains/test_local_fuzz.py",
)
UNBURDENED = ("tests/domains/test_unburdened.py",)
SECTORS = ("tests/domains/test_sectors.py", "tests/domains/test_local_fuzz.py")
COMPOSED = (*OWN, "tests/test_composition.py")
CERTIFIED = ("tests/test_certificates.py",)
CAPTURED = ("tests/test_capture.py",)
HARNESS = (
    "tests/crosscheck/test_linear.py",
    "tests/crosscheck/test_harness.py",
    "tests/crosscheck/test_lies.py",
)
FOUND = ("tests/test_findings.py", "tests/test_pipeline.py")

MUTANTS = [
    # --- rounding
    Mutant("up rounds to nearest", "lipaudit/rounding.py", "return math.nextafter(x, math.inf)", "return x", OWN, quick=True),
    Mutant("down rounds to nearest", "lipaudit/rounding.py", "return max(0.0, math.nextafter(x, -math.inf))", "return max(0.0, x)", OWN),
    Mutant("products of bounds rounded to nearest", "lipaudit/rounding.py", "rounding=decimal.ROUND_CEILING", "rounding=decimal.ROUND_HALF_EVEN", OWN, quick=True),
    Mutant("root of bounds rounded to nearest", "lipaudit/rounding.py", "return WIDE.next_plus(root) if root else root", "return root", OWN),
    Mutant("narrowed to nearest", "lipaudit/rounding.py", "return nearest if math.isinf(nearest) or Decimal(nearest) >= x else up(nearest)", "return nearest", OWN, quick=True),
    Mutant("gamma a thousand times too small", "lipaudit/rounding.py", "return n * UNIT * 1.02", "return n * UNIT * 1e-3", OWN),
    Mutant("unit roundoff of float32", "lipaudit/rounding.py", "UNIT = 2.0**-53", "UNIT = 2.0**-24", OWN),
    Mutant("unit roundoff halved", "lipaudit/rounding.py", "UNIT = 2.0**-53", "UNIT = 2.0**-54", OWN),
    Mutant("flushed denormals pass", "lipaudit/rounding.py", "if float(one * 1) == 0.0:", "if False:", ("tests/test_hostile.py::test_a_right_answer_or_one_clear_line[model: denormals flushed]",)),
    Mutant("Frobenius norm without its scale", "lipaudit/rounding.py", "* (1 + 2 * gamma(x.numel() + 2)))) * 2.0**exponent)", "* (1 + 2 * gamma(x.numel() + 2)))))", OWN),
    # --- norms
    Mutant("Gram without the root", "lipaudit/norms/gram.py", "    bound = frobenius\n    for scale, error in reversed(levels):\n        bound = _up(_up(_up(scale * bound) + error).sqrt())", "    bound = frobenius\n    for scale, error in reversed(levels):\n        bound = _up(_up(scale * bound) + error)", ("tests/norms/test_gram.py",)),
    Mutant("Gram forgets a scale", "lipaudit/norms/gram.py", "        levels.append((scale, error))\n        b = product / scale[:, None, None]", "        levels.append((scale, error))\n        b = product / scale[:, None, None] / 2", ("tests/norms/test_gram.py",)),
    Mutant("Gram of the lattice, a step short", "lipaudit/norms/gram.py", "for _ in range(steps - 1):", "for _ in range(steps - 2):", OWN),
    Mutant("Gram takes the smallest of the groups", "lipaudit/norms/gram.py", "return float(torch.minimum(bound, first).max())", "return float(torch.minimum(bound, first).min())", ("tests/norms/test_gram.py",), quick=True),
    Mutant("Gram of the lattice takes the mean of the groups", "lipaudit/norms/gram.py", "    return float(bound.max())", "    return float(bound.mean())", ("tests/norms/test_gram.py",)),
    Mutant("power iteration for a bound", "lipaudit/norms/methods.py", "    norm = largest_singular_value(scaled[None])\n", "    from lipaudit.norms.power_iteration import lower_bound\n\n    norm = lower_bound(Dense(scaled, (scaled.shape[1],)), steps=3)\n", NORMS),
    Mutant("Cholesky proves a smaller number", "lipaudit/norms/verified_eigenvalues.py", "return up(math.sqrt((rho + error) * (1 + 4 * UNIT))) + TINY", "return up(math.sqrt((rho + error) * (1 - 1e-6))) + TINY", NORMS),
    Mutant("Cholesky that fails counts", "lipaudit/norms/verified_eigenvalues.py", "complete = (info == 0) & torch.isfinite", "complete = (info >= 0) & torch.isfinite", NORMS),
    Mutant("only the first matrix is proved", "lipaudit/norms/verified_eigenvalues.py", "        numbers = numbers[~holds(batch, numbers, rho)]", "        numbers = numbers[:1][~holds(batch, numbers[:1], rho)]", CONV),
    Mutant("weights that were scaled keep the scale", "lipaudit/norms/methods.py", "return Upper(up((norm + error) * 2.0**exponent)", "return Upper(up(norm + error)", NORMS),
    Mutant("circular for zero padding", "lipaudit/norms/torus.py", "return inner, [-(-max(n + max(pads), s * m) // s) for n, pads, s, m in axes], copies", "return inner, [-(-n // s) for n, pads, s, m in axes], copies", ("tests/norms/test_known.py", "tests/norms/test_torus.py"), quick=True),
    Mutant("half of the frequencies", "lipaudit/norms/symbol.py", "return grid[code <= mirror]", "return grid[code < mirror]", CONV),
    Mutant("the stride ignored", "lipaudit/norms/symbol.py", "in sorted(found.items())\n", "in sorted(found.items())[:1]\n", CONV),
    Mutant("the dilation ignored", "lipaudit/norms/symbol.py", "offset = [divmod(d * a, s)", "offset = [divmod(a, s)", CONV),
    Mutant("groups: the first counts", "lipaudit/norms/symbol.py", "weight, groups = conv.weight, conv.groups\n", "weight, groups = conv.weight[: len(conv.weight) // conv.groups], 1\n", CONV),
    Mutant("the sine of the symbol with the wrong sign", "lipaudit/norms/symbol.py", "(ahead.mT - ahead).flatten(1)", "0 * (ahead.mT - ahead).flatten(1)", CONV),
    Mutant("Gram matrices of the wrong frequencies", "lipaudit/norms/symbol.py", "turns = (index[:, None, :] * places.to(index.device)[None]) % moduli", "turns = (index[:, None, :] * places.to(index.device)[None].clamp_max(1)) % moduli", CONV),
    Mutant("reflect padding without copies", "lipaudit/norms/lattice.py", "        return conv, math.prod(copies)", "        return conv, 1", CONV),
    Mutant("replicate padding without copies", "lipaudit/norms/lattice.py", "return conv, math.prod(most_frequent(min(max(i, 0), n - 1)", "return conv, 1 + 0 * math.prod(most_frequent(min(max(i, 0), n - 1)", CONV),
    Mutant("the Riesz factor dropped", "lipaudit/norms/lipgrid.py", "    value = up(up(norm * factor) * up(math.sqrt(copies)))", "    value = up(norm * up(math.sqrt(copies)))", ("tests/norms/test_toeplitz.py",), quick=True),
    Mutant("the LipGrid factor dropped", "lipaudit/norms/lipgrid.py", "norm = up(up(math.sqrt(_largest_square(whole.taps, points))) * factor)", "norm = up(math.sqrt(_largest_square(whole.taps, points)))", ("tests/norms/test_toeplitz.py",)),
    Mutant("half of the autocorrelation", "lipaudit/norms/aol.py", "sums = sums + absolute + (absolute.mT if any(shift) else 0.0)", "sums = sums + absolute", ("tests/norms/test_aol.py",)),
    Mutant("Perron: the smallest ratio", "lipaudit/norms/aol.py", "ratio = (image / weights).amax((1, 2))", "ratio = (image / weights).amin((1, 2))", ("tests/norms/test_aol.py",)),
    Mutant("four bounds without the root of the taps", "lipaudit/norms/four_bounds.py", "whole.upper(up(norm * root))", "whole.upper(norm)", ("tests/norms/test_reshape.py",)),
    Mutant("half cell width", "lipaudit/norms/frequency_cells.py", "        shrunk = math.cos(delta) ** 2 * (1 - 1e-15)", "        shrunk = math.cos(delta / 2) ** 2 * (1 - 1e-15)", ("tests/norms/test_cells.py",)),
    Mutant("Schur: places that read fewer taps only", "lipaudit/norms/linear_maps.py", "inside.unique(dim=0).to(rows)", "inside.unique(dim=0)[:1].to(rows)", ("tests/norms/test_maps.py",)),
    Mutant("real borders: the first group for all", "lipaudit/norms/tight.py", "numbers % self.conv.groups\n", "numbers % 1\n", ("tests/norms/test_tight.py",)),
    Mutant("real borders: a border place lost", "lipaudit/norms/tight.py", "min(high, m - 1 - ahead), 0, 1", "min(high, m - 2 - ahead), 0, 1", ("tests/norms/test_tight.py",)),
    Mutant("real borders: no entry of the last input", "lipaudit/norms/tight.py", "s * output + d * tap - p) < n:", "s * output + d * tap - p) < n - 1:", ("tests/norms/test_tight.py",)),
    Mutant("real borders: the part that came last", "lipaudit/norms/tight.py", "out.split(self.at_once), strict=True)", "out[:1].split(self.at_once), strict=False)", ("tests/norms/test_tight.py",)),
    Mutant("Schur: rows only", "lipaudit/norms/linear_maps.py", "up(math.sqrt(row) * math.sqrt(column) * (1 + slack))", "up(row * (1 + slack))", ("tests/norms/test_maps.py", "tests/norms/test_methods.py", "tests/domains/test_rules.py")),
    Mutant("a scale merged into the wrong axis", "lipaudit/norms/merging.py", "return replace(first, weight=first.weight * c[:, None], relative_error=_compound(first, then))", "return replace(first, weight=first.weight * c.mean(), relative_error=_compound(first, then))", ("tests/norms/test_maps.py", "tests/test_composition.py")),
    Mutant("padding lost when merged", "lipaudit/norms/merging.py", "pads = tuple((a + c, b + d) for (a, b), (c, d) in both)", "pads = tuple((c, d) for (a, b), (c, d) in both)", ("tests/norms/test_maps.py", "tests/domains/test_rules.py")),
    Mutant("a diagonal counts its mean", "lipaudit/norms/methods.py", "value = float(linear.factor.abs().max()) * (1 + linear.relative_error)", "value = float(linear.factor.abs().mean()) * (1 + linear.relative_error)", (*OWN, "tests/norms/test_known.py", "tests/domains/test_rules.py")),
    # --- Lipschitz rules and their composition
    Mutant("batch norm forgets eps", "lipaudit/domains/lipschitz/linear.py", 'variance = constant(running_var, "a running variance") + eps', 'variance = constant(running_var, "a running variance")', RULES, quick=True),
    Mutant("batch norm multiplies by the deviation", "lipaudit/domains/lipschitz/linear.py", 'constant(weight, "a batch norm weight") / variance.sqrt()', 'constant(weight, "a batch norm weight") * variance.sqrt()', RULES),
    Mutant("max pooling ignores overlap", "lipaudit/domains/lipschitz/pooling.py", '                if 0 <= place < len(seen):\n                    seen[place] += 1\n', '                if 0 <= place < len(seen):\n                    seen[place] = 1\n', RULES),
    Mutant("average pooling as disjoint windows", "lipaudit/domains/lipschitz/pooling.py", "apart = None if kernel != stride else up(", "apart = up(", RULES),
    Mutant("a mean counts as a sum over n", "lipaudit/domains/lipschitz/pooling.py", "up(up(1.0 / math.sqrt(summed))) if mean and summed > 1", "up(up(1.0 / summed)) if mean and summed > 1", RULES),
    Mutant("running sums count once", "lipaudit/domains/lipschitz/pooling.py", "bound = 1.0 / (2 * math.sin(math.pi / (4 * count + 2)))", "bound = 1.0 / (2 * math.sin(math.pi / (2 * count + 2)))", RULES),
    Mutant("GELU constant lowered by 1 %", "lipaudit/domains/lipschitz/pointwise.py", '"none": 1.128904146', '"none": 1.1176', ("tests/domains/test_pointwise.py",), quick=True),
    Mutant("SiLU counts 1", "lipaudit/domains/lipschitz/pointwise.py", '"silu.default": (1.099839321,', '"silu.default": (1.0,', ("tests/domains/test_pointwise.py",)),
    Mutant("sigmoid counts an eighth", "lipaudit/domains/lipschitz/pointwise.py", '"sigmoid.default": (0.25,', '"sigmoid.default": (0.125,', ("tests/domains/test_pointwise.py",)),
    Mutant("leaky ReLU with a steep negative side", "lipaudit/domains/lipschitz/pointwise.py", "slope = max(1.0, abs(float(negative_slope)))", "slope = 1.0", ("tests/domains/test_pointwise.py", *RULES)),
    Mutant("residual: the larger branch", "lipaudit/domains/lipschitz/propagator.py", "            total = WIDE.add(total, bound)\n", "            total = max(total, bound)\n", RULES),
    Mutant("concatenation: the larger branch", "lipaudit/domains/lipschitz/propagator.py", "        return wide_sqrt(total)\n", "        return max(bounds)\n", RULES),
    Mutant("alpha of a sum ignored", "lipaudit/domains/lipschitz/joining.py", '    right = stretched(node, ledger, other, "other", abs(float(alpha)))\n', '    right = stretched(node, ledger, other, "other", 1.0)\n', RULES),
    Mutant("overlapping parts count as apart", "lipaudit/domains/lipschitz/joining.py", "if not bool((group[1] & part).any())]", "if True]", ("tests/domains/test_pieces.py",)),
    Mutant("softmax constant halved", "lipaudit/domains/lipschitz/magnitudes.py", "HALF = up(math.sqrt(0.5))", "HALF = 0.5 * up(math.sqrt(0.5))", BOUNDED),
    Mutant("attention forgets the values", "lipaudit/domains/lipschitz/attention.py", "    if isinstance(value, Value):\n        queries", "    if False:\n        queries", BOUNDED),
    Mutant("attention scaled twice", "lipaudit/domains/lipschitz/attention.py", "1.0 / math.sqrt(heads.shape(\"query\", query)[-1])", "1.0 / heads.shape(\"query\", query)[-1]", BOUNDED),
    Mutant("a layer forgotten in the composition", "lipaudit/domains/lipschitz/propagator.py", "        bound = WIDE.multiply(wide(upper.value), total)\n", "        bound = total if upper.value > 1 else WIDE.multiply(wide(upper.value), total)\n", COMPOSED),
    Mutant("the first map of a chain only", "lipaudit/domains/lipschitz/propagator.py", "            for link in merged(value.chain):\n                step = self._bound_map(step, link)", "            for link in merged(value.chain)[:1]:\n                step = self._bound_map(step, link)", RULES),
    Mutant("the standard deviation ignored", "lipaudit/graph/wrappers.py", "return (x - self.mean) / self.std", "return x - self.mean", (*OWN, "tests/test_entry_points.py", "tests/test_models.py")),
    Mutant("class pairs without what comes before", "lipaudit/norms/row_distances.py", "min(most, narrow_up(WIDE.multiply(wide(distances[i][j]), base)))", "min(most, distances[i][j])", COMPOSED),
    Mutant("class pairs: the whole bound without root two", "lipaudit/certification/network_bound.py", "most = narrow_up(WIDE.multiply(wide(up(math.sqrt(2.0))), whole))", "most = narrow_up(whole)", COMPOSED),
    Mutant("distance of rows: their norms apart", "lipaudit/norms/row_distances.py", "        differences = rows[i + 1 :] - rows[i]\n", "        differences = rows[i + 1 :]\n", COMPOSED),
    Mutant("many classes: the cross term twice", "lipaudit/norms/row_distances.py", "(sums - 2 * (scaled @ scaled.T))", "(sums - 3 * (scaled @ scaled.T))", COMPOSED),
    # --- ranges
    Mutant("a difference takes the same ends", "lipaudit/domains/intervals/arithmetic.py", "    return Range(-x.high, -x.low, x.axis, x.length)", "    return Range(-x.low, -x.high, x.axis, x.length)", RANGES),
    Mutant("a product of the same ends", "lipaudit/domains/intervals/arithmetic.py", "_extremes([x * y for x in left for y in right])", "_extremes([x * y for x, y in zip(left * 2, right * 2, strict=False)])", RANGES),
    Mutant("a quotient through zero", "lipaudit/domains/intervals/arithmetic.py", "unknown = (b.low <= 0) & (b.high >= 0)", "unknown = (b.low == 0) & (b.high == 0)", RANGES),
    Mutant("|x| of a range with zero inside", "lipaudit/domains/intervals/arithmetic.py", "Range(torch.maximum(x.low, -x.high).clamp_min(0), x.magnitude)", "Range(torch.minimum(x.low.abs(), x.high.abs()), x.magnitude)", RANGES),
    Mutant("ranges not widened", "lipaudit/domains/intervals/value.py", "low = torch.where(low.isinf(), low, low - below - TINY)", "low = torch.where(low.isinf(), low, low)", RANGES),
    Mutant("half of the radius", "lipaudit/domains/intervals/value.py", "centre, torch.maximum(self.high - centre, centre - self.low) * (1 + gamma(4))", "centre, (self.high - centre) / 2", RANGES),
    # --- rounding of the logits
    Mutant("roundoff: gamma of one term", "lipaudit/domains/rounding/float64.py", "return gamma(_terms(arguments) + 3) * call(node, positive)", "return gamma(1) * 1e-3 * call(node, positive)", (*CERTIFIED, "tests/domains/test_precise.py", *OWN)),
    Mutant("roundoff: the wrong law for a residual", "lipaudit/domains/rounding/float64.py", '    "sum": sum,\n', '    "sum": max,\n', (*CERTIFIED, *OWN)),
    Mutant("roundoff: the last layer only", "lipaudit/certification/margins.py", "errors[line.step] = (line.upper.value * passed + added) * (1 + 1e-12)", "errors[line.step] = added * (1 + 1e-12)", (*CERTIFIED, *OWN)),
    Mutant("roundoff: errors do not grow", "lipaudit/certification/margins.py", "added = sum(local.get(node, 0.0) * factor for node, factor in self.growth[line.step])", "added = max(local.get(node, 0.0) for node, factor in self.growth[line.step])", (*CERTIFIED, *OWN)),
    Mutant("roundoff: beyond its room it counts", "lipaudit/certification/margins.py", "return logits, error if trusted else math.inf", "return logits, error", (*CERTIFIED, "tests/domains/test_bounded_rules.py", *OWN)),
    # --- certificates
    Mutant("radius rounded up", "lipaudit/certification/certificates.py", "radius = min(radius, down(sure / pair))", "radius = min(radius, up(sure / pair))", (*CERTIFIED, *OWN), quick=True),
    Mutant("margin without its error", "lipaudit/certification/margins.py", "{j: down(down(value) - slack) if value > 0", "{j: down(down(value)) if value > 0", (*CERTIFIED, *OWN)),
    Mutant("error of the logits without root two", "lipaudit/certification/margins.py", "slack = up(up(math.sqrt(2.0)) * error)", "slack = error", (*CERTIFIED, *OWN)),
    Mutant("a tie is certified", "lipaudit/certification/certificates.py", "        if sure <= 0.0:\n            radius = 0.0\n", "        if sure <= 0.0:\n            pass\n", CERTIFIED),
    Mutant("the largest of the pairs", "lipaudit/certification/certificates.py", "radius = min(radius, down(sure / pair))", "radius = max(radius if radius < 1e300 else 0.0, down(sure / pair))", CERTIFIED),
    Mutant("margin of the prediction, not of the label", "lipaudit/certification/certificates.py", "target = prediction if label is None else label", "target = prediction", CERTIFIED),
    Mutant("pairs of the wrong class", "lipaudit/certification/certificates.py", "pair = pairwise[target][j]", "pair = pairwise[others[0]][j] or pairwise[target][j]", CERTIFIED),
    Mutant("logits in float32", "lipaudit/certification/certificates.py", "point = x.to(composition.ledger.device, torch.float64)", "point = x.to(composition.ledger.device, torch.float64).float().double().half().double()", CERTIFIED),
    Mutant("NaN passes", "lipaudit/certification/inputs.py", "    if not bool(torch.isfinite(points).all()):\n", "    if False:\n", CERTIFIED),
    Mutant("labels out of range pass", "lipaudit/certification/inputs.py", "if bool((answers < 0).any()) or bool((answers >= classes).any()):", "if bool((answers >= classes).any()):", CERTIFIED),
    # --- local certificates
    Mutant("zonotope: the remainder dropped", "lipaudit/domains/zonotope/affine_form.py", "reach = (self.reach + self.remainder) * (1 + gamma(4))", "reach = self.reach * (1 + gamma(4))", (*ZONOTOPE, *OWN)),
    Mutant("zonotope: the ball as a sum", "lipaudit/domains/zonotope/affine_form.py", "return (ball.sqrt() + symbols)", "return torch.maximum(ball.sqrt(), symbols)", ZONOTOPE),
    Mutant("zonotope: the radius not scaled", "lipaudit/domains/zonotope/affine_form.py", "moves[:count].fill_diagonal_(radius)", "moves[:count].fill_diagonal_(min(radius, 0.01))", ZONOTOPE),
    Mutant("zonotope: the error of an open sign dropped", "lipaudit/domains/zonotope/relaxations.py", "return Band(slope, band.shift.masked_fill(straight, 0.0), band.error.masked_fill(straight, 0.0))", "return Band(slope, band.shift.masked_fill(straight, 0.0), band.error * 0)", ZONOTOPE),
    Mutant("zonotope: the wrong slope of ReLU", "lipaudit/domains/zonotope/relaxations.py", "slope = torch.where(above, 1.0, torch.where(below, 0.0, band.slope))", "slope = torch.where(above, 1.0, torch.where(below, 0.0, band.slope / 2))", ZONOTOPE),
    Mutant("zonotope: a quarter of the curvature", "lipaudit/domains/zonotope/relaxations.py", "error = torch.minimum(curvature / 2 * half.square(), steepness)", "error = torch.minimum(curvature / 8 * half.square(), steepness)", ZONOTOPE),
    Mutant("zonotope: turns inside forgotten", "lipaudit/domains/zonotope/relaxations.py", "    return _enclosing(slope, [*ends, *(_at(node, arguments, turn, low, high) for turn in turns)])", "    del turns\n    return _enclosing(slope, ends)", ZONOTOPE),
    Mutant("roundings: forgotten when they become symbols", "lipaudit/domains/zonotope/propagator.py", "start, error = self.rows, moving.double() * form.remainder", "start, error = self.rows, moving.double() * 0.5 * form.remainder", UNBURDENED),
    Mutant("roundings: a ball too small", "lipaudit/domains/zonotope/propagator.py", "form.centre.new_zeros(count), 1.0))", "form.centre.new_zeros(count), 0.7))", UNBURDENED),
    Mutant("roundings: of outputs that may be positive dropped", "lipaudit/domains/zonotope/propagator.py", "moving = (band.slope != 0) | (band.shift != 0) | (band.error != 0)", "moving = band.slope == 1", UNBURDENED),
    Mutant("backwards: half of the parts of a sample", "lipaudit/domains/zonotope/linear_images.py", "return parts.reshape(*c.shape[:2], *parts.shape[2:])", "return parts.reshape(*c.shape[:2], *parts.shape[2:]) * 0.5", ZONOTOPE),
    Mutant("backwards: the ball in another norm", "lipaudit/domains/zonotope/backward.py", "return [], -self.radius * (length", "return [], -self.radius / 2 * (length", ZONOTOPE),
    Mutant("backwards: the upper line for both signs", "lipaudit/domains/zonotope/backward.py", "slope = torch.where(c > 0, lower, band.slope)", "slope = torch.where(c > 0, band.slope, lower)", ZONOTOPE),
    Mutant("backwards: a sum loses an operand", "lipaudit/domains/zonotope/backward.py", "                part = waiting[parent.number][1] + part\n", "", ZONOTOPE),
    Mutant("sectors: slopes from a range too small", "lipaudit/domains/zonotope/quadratic_constraints.py", "half = torch.maximum(steepest - middle, middle - flattest) + gamma(8)", "half = torch.maximum(steepest - middle, middle - flattest) * 0.7", SECTORS),
    Mutant("sectors: the steepest slope too flat", "lipaudit/domains/zonotope/ball_constraints.py", "torch.where(z >= 0, 1.0, high / (high - z))", "torch.where(z >= 0, 1.0, high / (high - low))", SECTORS),
    Mutant("sectors: shifts with the wrong sign", "lipaudit/domains/zonotope/quadratic_constraints.py", "c = centre + known - (t * symbols).sum(0)", "c = centre + known + (t * symbols).sum(0)", SECTORS),
    Mutant("sectors: symbols in a box for nothing", "lipaudit/domains/zonotope/quadratic_constraints.py", "right, sizes = self.ball + float(t @ self.beyond[: len(t)]) * (1 + gamma(len(t) + 4)), float(self.inputs)", "right, sizes = self.ball, float(self.inputs)", SECTORS),
    Mutant("sectors: an ellipsoid too small", "lipaudit/domains/zonotope/quadratic_constraints.py", "length = math.sqrt(square * (1 + gamma(4 * unknowns + 64))) * (1 + gamma(4))", "length = 0.9 * math.sqrt(square)", SECTORS),
    Mutant("sectors: what a basis misses dropped", "lipaudit/domains/zonotope/quadratic_constraints.py", "(form.remainder + missed) * (1 + gamma(4))", "form.remainder * (1 + gamma(4))", SECTORS),
    Mutant("sectors: a basis that is too long", "lipaudit/domains/zonotope/quadratic_constraints.py", "self._longest = basis, basis.shape[1], 1 + excess", "self._longest = basis, basis.shape[1], 1.0", SECTORS),
    Mutant("sectors: one triangle of what is left", "lipaudit/domains/zonotope/quadratic_constraints.py", "total += 2 * float(", "total += float(", SECTORS),
    Mutant("sectors: what is left beside the diagonal dropped", "lipaudit/domains/zonotope/quadratic_constraints.py", "square = square + square.tril(-1).mT", "square = square.diagonal().diag()", SECTORS),
    Mutant("sectors: what a symbol has in common with those before dropped", "lipaudit/domains/zonotope/quadratic_constraints.py", "matrix[before:after, :before] += (t * self.own)[:, None] * self.aside", "pass", SECTORS),
    Mutant("sectors: a step of its own in sizes", "lipaudit/domains/zonotope/quadratic_constraints.py", " + self.own.abs() * far[before : self.unknowns]", "", SECTORS),
    Mutant("sectors: a difference that fails counts", "lipaudit/domains/zonotope/logits.py", "return torch.full_like(room, -math.inf)", "return room", SECTORS),
    Mutant("local: a failed proof counts", "lipaudit/certification/local_search.py", "if found.rows > 0:", "if found.rows >= 0:", ("tests/test_local.py",)),
    # --- capture
    Mutant("train mode passes", "lipaudit/graph/capture.py", "    if training:\n", "    if False:\n", CAPTURED),
    Mutant("writes to buffers pass", "lipaudit/graph/capture.py", "    if program.graph_signature.buffers_to_mutate:\n", "    if False:\n", CAPTURED),
    Mutant("writes to the input pass", "lipaudit/graph/capture.py", "    if program.graph_signature.user_inputs_to_mutate:\n", "    if False:\n", CAPTURED),
    Mutant("another graph passes", "lipaudit/graph/trials.py", "        return bool((same | (got == computed) | (got.isnan() & computed.isnan())).all())\n", "        return True\n", CAPTURED),
    Mutant("samples that mix pass", "lipaudit/graph/trials.py", "            inputs = torch.full_like(pair, math.nan)\n", "            inputs = sample.expand_as(pair).clone()\n", CAPTURED),
    Mutant("hooks of a wrapper pass", "lipaudit/graph/wrappers.py", "if model._forward_hooks or model._forward_pre_hooks:", "if False:", CAPTURED),
    # --- cross-check and verdict
    Mutant("an attack at the radius does not count", "lipaudit/results/audit.py", "found is not None and 0 < certified >= found", "found is not None and 0 < certified > found", FOUND, quick=True),
    Mutant("an attack inside the radius is ignored", "lipaudit/verdict/checks/integrity.py", "    if not tested and not broken:", "    broken = []\n    if not tested and not broken:", FOUND),
    Mutant("a slope above the bound passes", "lipaudit/verdict/checks/integrity.py", "    if audit.slope_share > 1:", "    if audit.slope_share > 2:", FOUND),
    Mutant("a layer below what was measured passes", "lipaudit/results/metrics.py", "line.lower is not None and line.lower > line.upper.value", "line.lower is not None and line.lower > 2 * line.upper.value", FOUND),
    Mutant("distance in float32", "lipaudit/crosscheck/verification.py", "    distance = math.dist(point.flatten().tolist(), other.flatten().tolist())\n", "    distance = float((point.float() - other.float()).norm())\n", HARNESS),
    Mutant("distance rounded down", "lipaudit/crosscheck/verification.py", "return math.nextafter(distance * (1 + 2**-50), math.inf)", "return math.nextafter(distance * (1 - 2**-50), 0.0)", (*HARNESS, *OWN)),
    Mutant("a witness that is right counts", "lipaudit/crosscheck/verification.py", "good = finite & (together.prediction != labels) & (together.margin < -together.noise)", "good = finite", HARNESS),
    Mutant("a witness of NaN counts", "lipaudit/crosscheck/verification.py", "finite = points.flatten(1).isfinite().all(1) & together.noise.isfinite()", "finite = torch.ones_like(labels, dtype=torch.bool)", (*HARNESS, *OWN)),
    Mutant("drawn in beyond the boundary", "lipaudit/crosscheck/verification.py", "        best[rows[hit]] = tried[hit]", "        best[rows] = tried", HARNESS),
    Mutant("clipping forgotten", "lipaudit/crosscheck/unit_box.py", "return raw.clamp(self.low, self.high)", "return raw", (*HARNESS, *OWN)),
    Mutant("the budget of another range", "lipaudit/crosscheck/runner.py", "/ (network.high - network.low)\n    batch", "/ 1.0\n    batch", HARNESS),
    Mutant("samples that are wrong are attacked", "lipaudit/crosscheck/samples.py", "right = (opinion.prediction == labels) & (opinion.margin > 0)", "right = opinion.margin > -math.inf", HARNESS),
    Mutant("a farther witness replaces a closer one", "lipaudit/crosscheck/samples.py", "closer = distance < self.distance[rows[kept]]", "closer = distance > 0", HARNESS),
    Mutant("slopes of the gradient", "lipaudit/crosscheck/slope.py", "rise = abs(first - second) - noise", "rise = 1.5 * abs(first - second) - noise", ("tests/crosscheck/test_slope.py",)),
    # --- journal
    Mutant("the journal replays another part", "lipaudit/files/journal.py", 'if str(file["fingerprint"]) != fingerprint:', "if False:", ("tests/test_journal.py",)),
    Mutant("the journal of another audit goes on", "lipaudit/files/journal.py", "if old.get(name) != new.get(name)]", "if False]", ("tests/test_journal.py",)),
    Mutant("fingerprints without values", "lipaudit/files/journal.py", "            digest.update(np.ascontiguousarray(value).tobytes())\n", "", ("tests/test_journal.py",)),
    # --- loading
    Mutant("pickles may hold code", "lipaudit/loading/checkpoint_files.py", 'map_location="cpu", weights_only=True)', 'map_location="cpu", weights_only=False)', ("tests/test_checkpoints.py",)),
    Mutant("missing weights pass", "lipaudit/loading/checkpoints.py", "if missing or unknown or shapes:", "if unknown or shapes:", ("tests/test_checkpoints.py",)),
    Mutant("the hash in the name is not checked", "lipaudit/loading/checkpoints.py", "    if actual != match[1]:", "    if False:", ("tests/test_checkpoints.py",)),
    Mutant("pixels of 0 to 255 pass", "lipaudit/loading/image_files.py", "    if high > 1:", "    if high > 255:", ("tests/test_datasets.py",)),
]  # fmt: skip
