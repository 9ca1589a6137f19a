"""Whether a result says what its own rows say: for results that come from a file. Pure functions of an `Audit`.

Nothing here is about who wrote a file. Whatever can be computed from other fields is computed again, and the first
field that holds something else is named: what was edited by hand, cut, or put together from others is no result.
What nothing else in the file determines (which wrong class was predicted, how long it took) is taken as it is.
"""

from __future__ import annotations

import base64
import hashlib
import math
import statistics
import struct
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from lipaudit import __version__
from lipaudit.errors import LipauditError, ReportError
from lipaudit.results.audit import MOST_CLASSES, SCHEMA, AttackRecord, Audit, Shard, in_shard
from lipaudit.results.bounds import Secant
from lipaudit.results.embedding import result_text
from lipaudit.results.formatting import clean
from lipaudit.results.intervals import rate
from lipaudit.results.json import from_json
from lipaudit.results.threat import PIXELS, eps_value, norm_of
from lipaudit.verdict.gates import conditions
from lipaudit.verdict.verdict import conclude, integrity_of, with_sentences

CLOSE = 1e-9
"""Two floats that were computed from the same numbers differ by less, relatively, on any machine."""
ROUNDED = 0.01
"""By how much the margins in a page are rounded, at most, relatively."""
BEHIND = 1.02
"""How much further than the adversarial example of the exact function that of the executed one is looked for."""
Faults = Iterator[tuple[str, str]]
"""The field, and what was expected of it."""


def digest_of(index: Sequence[int], label: Sequence[int], image: Sequence[str]) -> str:
    """SHA-256 of index, label and image of every row, in order."""
    rows = (f"{i} {y} {shown}\n" for i, y, shown in zip(index, label, image, strict=True))
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def confirmed(audit: Audit, *, page: bool = False) -> Audit:
    """The audit, if its fields agree with each other; its findings and sentences in the words of this lipaudit.

    `page`: it was inside a report page, where numbers of images are rounded and some columns are left out.
    Raises `ReportError` that names the first field which disagrees.
    """
    check_rows(audit, page=page)
    try:
        drawn = conclude(
            replace(audit, clean=rate("0", audit.samples.correct())),
            conditions(gate.expression for gate in audit.gates),
        )
    except LipauditError as error:
        raise ReportError(f"result.gates: {clean(error, 200)}") from None
    if page and audit.verdict.integrity == "INVALID":
        return audit  # the columns that say so may be among those left out
    if page or audit.schema != SCHEMA or audit.environment.get("lipaudit") != __version__:
        # What it says in words, another version may have said in others.
        same = drawn.each_norm(lambda view: _in_words_of(view, audit))
        difference = _difference(audit.each_norm(with_sentences), same, "result")
    else:
        difference = _difference(audit, drawn, "result")
    if difference:
        raise ReportError(f"{difference}; the file is not what lipaudit wrote")
    return audit if page else drawn


def _in_words_of(drawn: Audit, stored: Audit) -> Audit:
    """With verdict and findings in the first norm as they were stored."""
    theirs = stored.in_norm(drawn.norms[0])
    worded = replace(drawn.verdict, headline=theirs.verdict.headline, sentences=theirs.verdict.sentences)
    return replace(drawn, verdict=worded, findings=theirs.findings)


def check_rows(audit: Audit, *, page: bool = False) -> None:
    """Raises `ReportError` for rows, bounds and counts that cannot belong to one audit."""
    if len(set(audit.norms)) < len(audit.norms):
        raise ReportError("result.other_norms: expected each norm once; the file is not what lipaudit wrote")
    for number, view in enumerate(audit.views):
        where = f"other_norms.{view.norms[0]}: " if number else ""
        for check in (_rows, _outcomes, _radii, _arithmetics, _counts, _attacks, _bounds, _claim):
            for field, expected in check(view, page):
                raise ReportError(f"result.{where}{field}: expected {expected}; the file is not what lipaudit wrote")


def _difference(stored: Any, drawn: Any, where: str) -> str:
    """The first field in which the two differ; empty if they do not."""
    if is_dataclass(stored) and type(stored) is type(drawn):
        pairs = ((f".{f.name}", getattr(stored, f.name), getattr(drawn, f.name)) for f in fields(stored))
        return next((found for name, one, two in pairs if (found := _difference(one, two, where + name))), "")
    if isinstance(stored, tuple) and isinstance(drawn, tuple) and len(stored) == len(drawn):
        each = (_difference(one, two, f"{where}[{k}]") for k, (one, two) in enumerate(zip(stored, drawn, strict=True)))
        return next((found for found in each if found), "")
    if isinstance(stored, float) and isinstance(drawn, float):
        same = math.isclose(stored, drawn, rel_tol=CLOSE, abs_tol=CLOSE) or (math.isnan(stored) and math.isnan(drawn))
    else:
        same = stored == drawn
    return "" if same else f"{where}: expected {_short(drawn)}, got {_short(stored)}"


def _short(value: Any) -> str:
    several = isinstance(value, tuple) and len(value) != 1
    return f"{len(value)} entries" if several else clean(repr(value), 160)


def _rows(audit: Audit, page: bool) -> Faults:
    """Each image once, of the data set, and of the classes that there are."""
    s, count = audit.samples, len(audit.samples.index)
    if audit.shard is not None:
        yield from _shard(audit, audit.shard)
    if audit.dataset.samples != count:
        yield "samples", f"{audit.dataset.samples} rows, as result.dataset.samples says, got {count}"
    if len(set(s.index)) < count or min(s.index, default=0) < 0:
        yield "samples.index", "each image once, counted from 0"
    if max(s.index, default=-1) >= audit.dataset.available or count > audit.dataset.available:
        yield "samples.index", f"images of the {audit.dataset.available} that result.dataset.available counts"
    for name in ("label", "prediction", "adversarial_prediction"):
        for row, answer in enumerate(getattr(s, name)):
            if answer is not None and not 0 <= answer < audit.model.classes:
                yield f"samples.{name}[{row}]", f"a class from 0 to {audit.model.classes - 1}, got {answer}"
    if s.image or (audit.dataset.rows_sha256 and not page):
        if len(s.image) != count or digest_of(s.index, s.label, s.image) != audit.dataset.rows_sha256:
            yield "dataset.rows_sha256", "the digest of index, label and image of the rows"
    elif not page and _of_today(audit):
        yield "samples.image", "a digest of each image"
    if audit.parts and sum(part.samples for part in audit.parts) != count:
        yield "parts", f"{count} samples together"


def _of_today(audit: Audit) -> bool:
    """Whether it has all that results of this major version have."""
    return audit.schema.partition(".")[0] == SCHEMA.partition(".")[0]


def _shard(audit: Audit, shard: Shard) -> Faults:
    whole, expected = shard.whole, replace(shard.whole, sha256="", rows_sha256="", samples=audit.dataset.samples)
    if not 1 <= shard.number <= shard.of <= whole.samples:
        yield "shard.number", f"1 to {shard.of}, of at most {whole.samples} samples, got {shard.number}"
    rows = len(range(shard.number - 1, whole.samples, max(1, shard.of)))
    if rows != len(audit.samples.index):
        yield "samples", f"{rows} samples in shard {shard.number}/{shard.of}, got {len(audit.samples.index)}"
    if replace(audit.dataset, sha256="", rows_sha256="") != expected:
        yield "shard.whole", "the data set of result.dataset"
    names = {in_shard(record.name, view.norms[0]) for view in audit.views for record in view.attacks}
    if shard.distances.keys() - names:
        yield "shard.distances", "the attacks of result.attacks"


def _outcomes(audit: Audit, page: bool) -> Faults:
    """What an attack found belongs to a row that was attacked, and to one of the attacks."""
    s, names = audit.samples, {record.name for record in audit.attacks}
    executed = s.native_distance or (None,) * len(s.index)
    behind = math.inf if integrity_of(audit) == "INVALID" else BEHIND
    columns = (s.label, s.attacked, s.distance, s.adversarial_prediction, s.attack, executed)
    for row, (label, attacked, distance, answer, attack, by_rounding) in enumerate(zip(*columns, strict=True)):
        found = [value is not None for value in (distance, answer, attack)]
        if any(found) and not (all(found) and attacked):
            yield f"samples.distance[{row}]", "distance, prediction and attack of an image that was attacked, or none"
        elif distance is not None and not 0 <= distance < math.inf:
            yield f"samples.distance[{row}]", f"a distance from 0 on, got {distance}"
        elif distance is not None and answer == label:
            yield f"samples.adversarial_prediction[{row}]", f"another class than the label {label}"
        elif attack is not None and attack not in names:
            yield f"samples.attack[{row}]", f"one of the attacks that were run, got {clean(attack, 40)}"
        if by_rounding is not None and (distance is None or not 0 <= by_rounding <= distance * behind):
            yield f"samples.native_distance[{row}]", "a distance from 0 on, up to that of the adversarial example"
    for row, shown in enumerate(audit.thumbnails):
        if s.distance[shown.sample] is None:
            yield f"thumbnails[{row}].sample", "a row with an adversarial example"
    del page


def _radii(audit: Audit, page: bool) -> Faults:
    """A margin has the sign that the prediction says; a global radius is at most the margin over the pair's bound."""
    s, slack = audit.samples, ROUNDED if page else CLOSE
    # Of an audit that attacks refute, the radii may well be too large.
    believed = integrity_of(audit) != "INVALID"
    limits = (audit.bound.least_of_classes() if audit.bound else ()) or (0.0,) * audit.model.classes
    widest = _widest(audit)
    real = believed and audit.rounding is not None
    real = real and any(found.headline and found.arithmetic == "real" for found in audit.arithmetics)
    lost = 4 * (audit.rounding or 0.0)  # an upper end: radii lost the rounding of a difference of two logits
    for row, (right, margin, radius) in enumerate(zip(s.correct(), s.margin, s.radius, strict=True)):
        method = s.method[row] if s.method else "global"
        if math.isnan(margin) or (margin < 0 if right else margin > 0):
            sign = "0 or more of an image that is classified correctly" if right else "0 or less of one that is not"
            yield f"samples.margin[{row}]", f"{sign}, got {margin}"
        if not radius >= 0 or (radius > 0 and not right):
            yield f"samples.radius[{row}]", f"{'0 or more' if right else '0 of an image that is misclassified'}"
        if method not in ("global", "local") or (method == "local" and audit.config.get("local") == "off"):
            yield f"samples.method[{row}]", f"global, or local where local radii were looked for, got {clean(method)}"
        if radius > 0 and margin <= 0:
            yield f"samples.radius[{row}]", "0 without a margin"
        limit, most = limits[s.label[row]], widest[s.label[row]]
        other, distance = s.adversarial_prediction[row], s.distance[row]
        if believed and radius > 0 and other is not None and distance is not None:
            pair = audit.bound.pairwise[s.label[row]][other] if audit.bound and audit.bound.pairwise else most
            if margin > pair * distance * (1 + slack) ** 2 + lost:
                yield f"samples.margin[{row}]", f"at most what the bound allows for a distance of {distance:.6g}"
        if real and method == "global" and 0 < radius < math.inf and margin > radius * most * (1 + slack) ** 2 + lost:
            yield f"samples.margin[{row}]", f"at most radius * bound = {radius * most:.6g}, got {margin:.6g}"
        if believed and method == "global" and radius > 0 and radius * limit > margin * (1 + slack):
            yield f"samples.radius[{row}]", f"at most margin / bound = {margin / limit:.6g}, got {radius:.6g}"
    if audit.bound is None and any(s.radius):
        yield "samples.radius", "0 without a bound"


def _widest(audit: Audit) -> tuple[float, ...]:
    """Of each class, the largest bound with another one."""
    bound, classes = audit.bound, audit.model.classes
    if bound is None:
        return (math.inf,) * classes
    return tuple(map(max, bound.pairwise)) or (2 * bound.value * (1 + CLOSE),) * classes


def _arithmetics(audit: Audit, page: bool) -> Faults:
    """Each arithmetic once, and the radii of the samples are those of one of them.

    What is executed has the error of its roundings besides: its radii are at most those of real arithmetic.
    """
    radii, right = tuple(audit.samples.radius), audit.samples.correct()
    exact = next((found.radius for found in audit.arithmetics if found.arithmetic == "real" and found.radius), ())
    for found in audit.arithmetics:
        if found.headline and not page and tuple(found.radius or (0.0,) * len(radii)) != radii:
            yield f"arithmetics.{found.arithmetic}.radius", "the radii of result.samples"
        if found.why_not and (found.radius or found.certified):
            yield f"arithmetics.{found.arithmetic}.why_not", "nothing where radii are certified"
        if any(not radius >= 0 for radius in found.radius):
            yield f"arithmetics.{found.arithmetic}.radius", "radii from 0 on"
        if not page and any(radius > 0 and not good for radius, good in zip(found.radius, right, strict=False)):
            yield f"arithmetics.{found.arithmetic}.radius", "0 of an image that is misclassified"
        if any(radius > most * (1 + CLOSE) for radius, most in zip(found.radius, exact, strict=False)):
            yield f"arithmetics.{found.arithmetic}.radius", "at most the radii of real arithmetic"
    if len({found.arithmetic for found in audit.arithmetics}) < len(audit.arithmetics):
        yield "arithmetics", "each arithmetic once"
    if audit.arithmetics and [found.headline for found in audit.arithmetics].count(True) != 1:
        yield "arithmetics", "one arithmetic that result.samples.radius is about"


def _counts(audit: Audit, page: bool) -> Faults:
    """Budgets, sizes and measured numbers that can be."""
    budgets = [eps_value(eps) for eps in audit.threat.eps]
    if not budgets or budgets != sorted(set(budgets)):
        yield "threat.eps", "budgets, each once, the smallest first"
    if not -math.inf < audit.threat.low < audit.threat.high < math.inf:
        yield "threat.low", "a finite range, low < high"
    yield from _threat(audit)
    if audit.model.classes < 2 or not audit.samples.index:
        yield "samples", "at least one image and two classes"
    if any(not deviation > 0 for deviation in audit.model.std):
        yield "model.std", "numbers above 0"
    for name in ("slope", "slope_share", "rounding"):
        value = getattr(audit, name)
        if value is not None and not value >= 0:
            yield name, f"a number from 0 on, got {value}"
    if (audit.slope is None) != (audit.slope_share is None):
        yield "slope_share", "a share where a slope was seen"
    for estimate in audit.estimates:
        if estimate.probability is not None and not 0 <= estimate.probability <= 1:
            yield "estimates.probability", f"a share, got {estimate.probability}"
    del page


def _threat(audit: Audit) -> Faults:
    """The range and the budgets are those that the audit was asked for; times and counts are none below 0."""
    threat, box = audit.threat, audit.config.get("domain")
    pixels = (threat.low, threat.high) == PIXELS
    units = "pixels in [0, 1]" if pixels else f"inputs in [{threat.low:g}, {threat.high:g}]"
    if threat.units != units:
        yield "threat.units", f"{units}, as result.threat.low and high say"
    if isinstance(box, list) and box != [threat.low, threat.high]:
        yield "threat.low", f"the range of result.config.domain, {box}, got {threat.low:g} to {threat.high:g}"
    if audit.schema == SCHEMA and not _near(audit.dataset.width, threat.high - threat.low):
        yield "threat.high", f"a range of the width that result.dataset.width says, {audit.dataset.width:g}"
    asked = audit.config.get("eps") if threat.norm == "L2" and not audit.other_norms else None
    if isinstance(asked, list) and asked != list(threat.eps):
        yield "threat.eps", f"the budgets of result.config.eps, {clean(asked, 80)}"
    headline = [found.arithmetic for found in audit.arithmetics if found.headline]
    if headline and audit.config.get("arithmetic", headline[0]) != headline[0]:
        yield "config.arithmetic", f"{headline[0]}, as the headline of result.arithmetics says"
    whole = audit.dataset.samples if audit.shard is None else audit.shard.whole.samples
    if audit.config.get("samples", whole) != whole:
        yield "config.samples", f"{whole} as in result.dataset"
    seconds = [*audit.timing.values(), *(estimate.seconds for estimate in audit.estimates)]
    seconds += [audit.bound.seconds, *(line.seconds for line in audit.bound.layers)] if audit.bound else []
    if any(not second >= 0 for second in seconds):
        yield "timing", "times from 0 on"
    model = audit.model
    if model.parameters < 0 or len(model.mean) != len(model.std) or min(model.input_shape, default=0) < 1:
        yield "model", "a count of parameters, an input shape, and a mean and a deviation for each channel"
    if audit.dataset.class_names and len(audit.dataset.class_names) != model.classes:
        yield "dataset.class_names", f"a name for each of {model.classes} classes"


def _attacks(audit: Audit, page: bool) -> Faults:
    """What the records count is what the rows hold."""
    s, attacked = audit.samples, sum(audit.samples.attacked)
    if len({record.name for record in audit.attacks}) < len(audit.attacks):
        yield "attacks", "each attack once"
    for record in audit.attacks:
        where, closest = f"attacks.{clean(record.name, 40)}", s.attack.count(record.name)
        if record.closest != closest:
            yield f"{where}.closest", f"{closest}, as many as result.samples.attack names, got {record.closest}"
        if not record.closest <= record.broken <= record.attacked <= attacked:
            yield f"{where}.broken", f"closest <= broken <= attacked <= {attacked}, the images attacked"
        if (record.median_distance is None) != (record.broken == 0) or not (record.median_distance or 0) >= 0:
            yield f"{where}.median_distance", "a distance where images were broken"
        if not (page or _is_median(audit, record)):
            yield f"{where}.median_distance", "the median of the distances that it found, as far as the rows have them"
        if record.rejected < 0:
            yield f"{where}.rejected", "a count"
        if record.seconds < 0:
            yield f"{where}.seconds", f"a time from 0 on, got {record.seconds}"
    if attacked and sum(record.attacked for record in audit.attacks) < attacked:
        yield "samples.attacked", "rows that some attack counts"
    del page


def _is_median(audit: Audit, record: AttackRecord) -> bool:
    """Whether the median distance is that of its own distances, where all are there, else not below the closest."""
    s, said = audit.samples, record.median_distance
    own = [d for d, name in zip(s.distance, s.attack, strict=True) if name == record.name and d is not None]
    if audit.shard is not None:
        own = list(audit.shard.distances.get(in_shard(record.name, norm_of(audit.threat.norm)), ()))
    known = sorted(distance for distance in s.distance if distance is not None)
    if said is None or len(known) < record.broken:
        return True  # others say what is wrong with it
    if len(own) == record.broken:
        return _near(said, statistics.median(own))
    return said >= statistics.median(known[: record.broken]) * (1 - CLOSE)


def _bounds(audit: Audit, page: bool) -> Faults:  # noqa: C901  (one case after the other)
    """The ledger multiplies up to the bound; pairs of logits and slopes fit to it."""
    bound = audit.bound
    if bound is None:
        return
    logs = {"input": 0.0}
    for line in bound.layers:
        single = line.law != "scale" or len(line.inputs) == 1
        if any(step not in logs for step in line.inputs) or line.step in logs or not line.inputs or not single:
            yield f"bound.layers.{clean(line.step, 40)}", "inputs among the earlier lines, and a name of its own"
            return
        log = log10(line.upper.value) + _joined(line.law, [logs[step] for step in line.inputs])
        if not _near(log, line.log10_so_far):
            yield f"bound.layers.{clean(line.step, 40)}.log10_so_far", f"{log:.9g}, got {line.log10_so_far:.9g}"
        if line.candidates and not _near(log10(line.upper.value), min(log10(one.value) for one in line.candidates)):
            yield f"bound.layers.{clean(line.step, 40)}.upper", "the smallest of its candidates"
        if (line.lower or 0) < 0:
            yield f"bound.layers.{clean(line.step, 40)}.lower", f"a number from 0 on, got {line.lower}"
        if min(line.shape, default=1) < 1:
            yield f"bound.layers.{clean(line.step, 40)}.shape", "sizes from 1 on"
        logs[line.step] = line.log10_so_far
    read = {step for line in bound.layers for step in line.inputs}
    if not any(_near(bound.log10, log) for step, log in logs.items() if step not in read):
        yield "bound.log10", f"{list(logs.values())[-1]:.9g} as at the end of the ledger, got {bound.log10:.9g}"
    classes, omitted = audit.model.classes, page or audit.model.classes > MOST_CLASSES
    if len(bound.pairwise) != classes and (bound.pairwise or not omitted):
        yield "bound.pairwise", f"a row for each of {classes} classes, got {len(bound.pairwise)}"
    if not bound.pairwise and len(bound.least) != classes and (bound.least or _of_today(audit)):
        yield "bound.least", f"a number for each of {classes} classes, got {len(bound.least)}"
    if norm_of(audit.threat.norm) != bound.norm:
        yield "bound.norm", f"{norm_of(audit.threat.norm)}, as result.threat says, got {bound.norm}"
    # In L2 the bound is that of the vector of logits, elsewhere of each.
    most, times = (math.sqrt(2), "the root of 2") if bound.norm == "l2" else (2.0, "2")
    if any(not 0 <= v <= most * bound.value * (1 + CLOSE) for row in bound.pairwise for v in row):
        yield "bound.pairwise", f"numbers from 0 to {times} times the bound {bound.value:.6g}"
    for i, row in enumerate(bound.pairwise):
        if any(not _near(bound.pairwise[j][i], value) for j, value in enumerate(row)) or row[i] != 0:
            yield f"bound.pairwise[{i}]", "the same number for both orders of two classes, 0 for one"
    if tuple(bound.input_shape) != tuple(audit.model.input_shape):
        yield "bound.input_shape", f"{audit.model.input_shape}, as result.model says, got {bound.input_shape}"
    low, high = bound.smallest_pairwise, bound.largest_pairwise
    if audit.slope is not None and audit.slope_share is not None and 0 < low <= high < math.inf:
        least, most = audit.slope / high, audit.slope / low
        if not least * (1 - CLOSE) <= audit.slope_share <= most * (1 + CLOSE):
            yield "slope_share", f"the slope over a pairwise bound, {least:.6g} to {most:.6g}"


def _claim(audit: Audit, page: bool) -> Faults:
    """The claim is that of the settings; its slope follows from the two inputs and their logits."""
    claim, asked = audit.claim, audit.config.get("claimed_lipschitz")
    if claim is None:
        if asked is not None and _of_today(audit) and audit.norms[0] == "l2":
            yield "claim", f"the claimed constant {_short(asked)} of result.config"
        return
    if not 0 < claim.constant < math.inf:
        yield "claim.constant", f"a finite number above 0, got {claim.constant}"
    if asked is not None and asked != claim.constant:
        yield "claim.constant", f"{_short(asked)}, as result.config says, got {claim.constant}"
    secant = claim.steepest
    if secant is None:
        return
    ends = secant.logits
    if len(ends) != 2 or any(len(end) != audit.model.classes or not all(map(math.isfinite, end)) for end in ends):
        yield "claim.steepest.logits", f"{audit.model.classes} finite logits at each of two inputs"
        return
    if not 0 <= secant.sample < len(audit.samples.index):
        yield "claim.steepest.sample", f"a row below {len(audit.samples.index)}, got {secant.sample}"
    if not (0 < secant.distance < math.inf and 0 <= secant.error < math.inf):
        yield "claim.steepest.distance", "finite numbers, a distance above 0 and an error from 0 on"
        return
    if secant.inputs or (claim.standing(audit.bound) == "refuted" and not page):
        yield from _inputs(audit, secant)


def _inputs(audit: Audit, secant: Secant) -> Faults:
    """The two inputs lie in the box, as far apart as is said."""
    try:
        packed = [base64.b64decode(text, validate=True) for text in secant.inputs]
        points = [struct.unpack(f"<{math.prod(audit.model.input_shape)}f", one) for one in packed]
    except (ValueError, struct.error):
        points = []
    if len(points) != 2:
        yield "claim.steepest.inputs", "two inputs as base64 of float32, beside a slope that refutes the claim"
        return
    if not all(audit.threat.low <= entry <= audit.threat.high for point in points for entry in point):
        yield "claim.steepest.inputs", f"entries from {audit.threat.low:g} to {audit.threat.high:g}"
    if not 0 <= secant.distance - math.dist(*points) <= CLOSE * secant.distance:
        yield "claim.steepest.distance", f"{math.dist(*points)!r}, that of the two inputs, got {secant.distance!r}"


def _near(one: float, two: float) -> bool:
    return one == two or math.isclose(one, two, rel_tol=CLOSE, abs_tol=CLOSE)


def log10(value: float) -> float:
    return math.log10(value) if 0 < value < math.inf else -math.inf if value == 0 else math.inf


def _joined(law: str, logs: list[float]) -> float:
    """log10 of what the bounds of several inputs come to."""
    most = max(logs)
    if law in ("scale", "max") or not math.isfinite(most):
        return most
    power = 2 if law == "root_sum_squares" else 1
    return most + math.log10(sum(10 ** (power * (log - most)) for log in logs)) / power


def load_audit(path: str | Path) -> Audit:
    """The audit in a result file, or in a report page: from a page without pictures, with rounded sample numbers.

    Findings and sentences are those of this lipaudit, drawn again from the rows. Raises ReportError with one line if
    the file is missing, holds no result, or one of which a field disagrees with the others (see above).
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ReportError(f"cannot read {path}: {why}; name a .json file that `lipaudit run` wrote") from None
    except UnicodeDecodeError:
        raise ReportError(f"cannot read {path}: expected JSON in UTF-8, got other bytes") from None
    page = text.lstrip().startswith("<")
    try:
        return confirmed(from_json(result_text(text) if page else text), page=page)
    except ReportError as error:
        raise ReportError(f"cannot read {path}: {error}") from None
