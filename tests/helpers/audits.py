"""Plausible `Audit` objects for tests of everything that reads one: strong, vacuous, invalid, degenerate, hostile.

`ALL` names every builder. What they are made of is in `audit_parts.py`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import fields, replace
from statistics import median

from audit_parts import (
    CLASSES,
    EPS,
    arithmetics,
    chain_ledger,
    network,
    rate,
    rates,
    records,
    resnet_ledger,
    samples,
    thumbnails,
)

from lipaudit.results import intervals
from lipaudit.results.audit import AttackRecord, Audit, DataFacts, Finding, Gate, ModelFacts, Samples, Skip, Verdict
from lipaudit.results.bounds import NetworkBound
from lipaudit.results.threat import Threat
from lipaudit.verdict.consistency import digest_of
from lipaudit.verdict.gates import conditions
from lipaudit.verdict.verdict import conclude

HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}{% raw %}\x1b[31m\u202egnp.exe\x00" + "A" * 10_000


def findings(columns: Samples) -> tuple[Finding, ...]:
    tested = sum(columns.attacked)
    rows = (
        ("LA001", "pass", "No attack broke a certificate", f"0 of {tested}", "One break would prove a bound false."),
        ("LA002", "pass", "Observed slopes are below the bound", "0.3 of it", "A slope above it would refute it."),
        ("LA003", "pass", "Every layer has a proved upper bound", "all", "Power iteration measures from below."),
        ("LA105", "info", "Gap between bound and slopes seen", "0.5 decades", "Slack between proof and measurement."),
        ("LA301", "not run", "Not audited: changes measured in L∞", "", "Another norm is another question."),
    )
    return tuple(Finding(*row) for row in rows)


def verdict(strength: str = "substantial", headline: str = "Certificates hold for most images.") -> Verdict:
    sentences = (
        "No attack contradicted a certificate.",
        "At ε = 36/255, robust accuracy lies between the proved and the empirical share.",
    )
    return Verdict("SOUND", strength, "not set", headline, sentences)


def facts(name: str = "resnet18", source: str = "weights inside the pyautoattack 0.2.0 wheel") -> ModelFacts:
    return ModelFacts(
        name, source, "CIFAR-style ResNet-18", 11_173_962, "trained", "9c1e" * 16, "resnet18.pt",
        "44b0" * 16, "float32", (3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616), "MIT",
    )  # fmt: skip


def build(columns: Samples, bound: NetworkBound, model: ModelFacts, lamps: Verdict) -> Audit:
    n = len(columns.label)
    correct = sum(y == guess for y, guess in zip(columns.label, columns.prediction, strict=True))
    command = ("lipaudit", "run", "--model", model.name, "--dataset", "cifar10", "--samples", str(n))
    data = DataFacts("CIFAR-10", "test", "CIFAR-10 binary batches", "c58f" * 16, 10_000, n, 0, CLASSES, 255)
    return Audit(
        run="la-2026-11-20-7f3c9a",
        started="2026-11-20T18:20:00+00:00",
        command=command,
        status="complete",
        exit_code=0,
        verdict=lamps,
        model=model,
        dataset=data,
        threat=Threat(EPS),
        clean=rate("0", correct, n),
        certified=rates(columns, EPS, certified=True),
        empirical=rates(columns, EPS, certified=False),
        bound=bound,
        slope=11.3,
        slope_share=11.3 / bound.smallest_pairwise if bound.smallest_pairwise < math.inf else 0.0,
        rounding=2.1e-12,
        arithmetic="The certificates speak about the exported network in exact arithmetic, with rounding slack added.",
        arithmetics=arithmetics(columns, EPS),
        samples=columns,
        attacks=records(columns),
        findings=findings(columns),
        thumbnails=thumbnails(columns),
        timing={"bounds": 14.2, "certificates": 3.1, "attacks": 1250.0},
        environment={
            "lipaudit": "0.1.0",
            "torch": "2.15.0",
            "python": "3.11.7",
            "device": "cpu",
            "threads": 2,
        },
        config={"samples": n, "seed": 0, "eps": list(EPS), "attacks": "standard", "gate": {}},
    )


def strong(n: int = 512) -> Audit:
    """A 1-Lipschitz network: radii around 0.4, attacks just above them."""
    columns = samples(n, 1, 0.412, 1.4, 0.8, 0.02)
    blocks = [(f"blocks.{k}.conv", "conv2d", 1.0 + 0.03 * math.sin(k)) for k in range(12)]
    ledger = chain_ledger([("normalise", "affine", 4.05), *blocks, ("head.fc", "linear", 0.31)])
    return replace(build(columns, network(ledger), facts("lipconvnet-12"), verdict()), slope=1.02, slope_share=0.78)


def vacuous(n: int = 512) -> Audit:
    """A vanilla ResNet-18: the bound is 10^11 and radii of 10^-11 say nothing."""
    columns = samples(n, 2, 3.6e-11, 2.6e9, 0.96, 0.02)
    ledger = resnet_ledger(random.Random(5))
    lamps = replace(verdict("vacuous", "The certificates hold, and say almost nothing."), gate="failed")
    audit = build(columns, network(ledger), facts(), lamps)
    fail = Finding(
        "LA102", "fail", "Proved accuracy at 36/255 is below the gate", "0.0% < 30%",
        "The configuration asks for a proved accuracy of at least 30 %.",
        "Train with a Lipschitz constraint, or lower the gate.",
    )  # fmt: skip
    warn = Finding(
        "LA101", "warn", "Certificates are smaller than any real image change", "100% below 1/255",
        "Two different 8-bit images differ by at least 1/255, so these certificates cover no second image.",
    )  # fmt: skip
    return replace(audit, findings=(*audit.findings, fail, warn), exit_code=3)


def weak(n: int = 200) -> Audit:
    """Radii around 1/255: true, and good for a third of the images."""
    columns = samples(n, 4, 0.003, 30.0, 0.9, 0.05)
    return build(
        columns, network(resnet_ledger(random.Random(2), 0.3)), facts(), verdict("weak", "A little is proved.")
    )


def invalid(n: int = 512) -> Audit:
    """Two witnesses inside their certified radius: every certificate is withdrawn."""
    audit = strong(n)
    distance = list(audit.samples.distance)
    broken = [row for row, d in enumerate(distance) if d is not None and audit.samples.radius[row] > 0.3]
    for row, share in zip(broken[:2], (0.62, 0.8), strict=True):
        distance[row] = share * audit.samples.radius[row]
    columns = replace(audit.samples, distance=tuple(distance))
    lamps = Verdict(
        "INVALID", None, "cannot be evaluated", "Integrity failure: 2 certificates are contradicted by attacks.",
        ("Do not use any certificate in this report until the cause is found.",),
    )  # fmt: skip
    broke = Finding(
        "LA001",
        "fail",
        "An attack broke a certificate",
        "2 of 400",
        "One break proves a bound false.",
        "Report it.",
    )
    return replace(
        audit, samples=columns, verdict=lamps, certified=(), empirical=rates(columns, EPS, certified=False),
        status="invalid",
        exit_code=4, findings=(broke, *audit.findings[4:]), thumbnails=thumbnails(columns),
    )  # fmt: skip


def no_attacks() -> Audit:
    """`--attacks none`: certificates without a cross-check."""
    audit = strong(200)
    n = len(audit.samples.label)
    nothing = (None,) * n
    columns = replace(
        audit.samples, distance=nothing, adversarial_prediction=nothing, attack=nothing, attacked=(False,) * n
    )
    skipped = (Skip("attacks", "--attacks none"),)
    untested = Finding(
        "LA001", "not run", "No attack was run against the certificates", "0 images", "Nothing tested them."
    )
    return replace(
        audit,
        findings=(untested, *audit.findings[2:]),
        samples=columns,
        empirical=(),
        attacks=(),
        thumbnails=(),
        slope=None,
        slope_share=None,
        skipped=skipped,
    )


def unproved() -> Audit:
    """A layer without a proof: no bound, no certificate; attacks ran, one of them failed."""
    audit = vacuous(200)
    lamps = Verdict(
        "UNPROVED", None, "cannot be evaluated",
        "Incomplete: Square did not run. No certificate: 1 layer has no proved bound.",
        ("Robust accuracy is bounded from above only.",),
    )  # fmt: skip
    gone = Finding("LA003", "fail", "A layer has no proved upper bound", "attn.matmul", "Without it nothing is proved.")
    failed = AttackRecord("Square", "AutoAttack", "5000 queries", 0, 0, 0, None, 0, 0.0, "failed", "out of memory")
    return replace(
        audit, verdict=lamps, bound=None, certified=(), slope=None, slope_share=None, status="partial",
        exit_code=5, findings=(gone,),
        samples=replace(audit.samples, radius=(0.0,) * 200), attacks=(*audit.attacks[:3], failed, *audit.attacks[4:]),
        skipped=(Skip("attack Square", "out of memory"),), warnings=("Inputs were resized from 40x40.",),
    )  # fmt: skip


def flat() -> Audit:
    """Every layer is 1-Lipschitz to rounding: there is no waterfall to draw."""
    ledger = chain_ledger([(f"blocks.{k}.conv", "conv2d", 1.0 + 1e-7 * (k + 1)) for k in range(12)])
    audit = strong(200)
    bound = replace(network(ledger), domain=(0.0, 1.0))
    return replace(audit, bound=bound, slope=0.93, model=replace(audit.model, mean=(), std=()))


def single() -> Audit:
    """One image, one budget."""
    audit = strong(1)
    one = replace(audit.samples, label=(3,), prediction=(3,), margin=(2.0,), radius=(0.3,), attacked=(True,))
    one = replace(one, distance=(0.45,), adversarial_prediction=(5,), attack=("FAB-T",))
    return replace(
        audit, samples=one, threat=Threat(("36/255",)), clean=rate("0", 1, 1), thumbnails=thumbnails(one),
        certified=rates(one, ("36/255",), True), empirical=rates(one, ("36/255",), False),
    )  # fmt: skip


def all_wrong() -> Audit:
    """A network that gets nothing right: nothing to certify, nothing to attack."""
    columns = samples(50, 3, 0.1, 1.4, 0.0, 0.0)
    return build(
        columns,
        network(resnet_ledger(random.Random(1), 0.4)),
        facts(),
        verdict("vacuous", "Nothing is right."),
    )


def random_weights() -> Audit:
    """Audited at random initialisation, on request."""
    audit = vacuous(100)
    return replace(audit, model=replace(audit.model, weights="random", weights_file="", weights_file_sha256=""))


def deep(lines: int = 400) -> Audit:
    """Hundreds of layers, and a bound beyond the range of float64."""
    ledger = chain_ledger([(f"stages.{k // 50}.blocks.{k}.conv", "conv2d", 9.0 + k % 7) for k in range(lines)])
    audit = vacuous(300)
    columns = replace(audit.samples, radius=tuple(1e-300 * r for r in audit.samples.radius))
    return replace(audit, bound=network(ledger), samples=columns, certified=rates(columns, EPS, True))


def thousand_classes() -> Audit:
    """As many classes as ImageNet: a million class pairs, images larger than a thumbnail, off the 8-bit grid."""
    audit = vacuous(64)
    names = tuple(f"synset {k}" for k in range(1000))
    data = replace(audit.dataset, class_names=names, levels=0)
    model = replace(audit.model, classes=1000, input_shape=(3, 224, 224))
    return replace(audit, dataset=data, model=model, bound=network(resnet_ledger(random.Random(5)), 1000))


def gated() -> Audit:
    """Four conditions: one met, one missed by less than rounding shows, one that only warns, one without a number."""
    audit = weak(200)
    gates = (
        Gate("clean_accuracy>=0.5", 0.5, "value", "error", "passed", audit.clean.value),
        Gate("certified_accuracy@36/255>=0.30", 0.3, "ci_low", "error", "failed", 0.299999),
        Gate("empirical_robust_accuracy@0.5>=0.9", 0.9, "value", "warn", "failed", 0.12),
        Gate(
            "empirical_robust_accuracy@2>=0.1", 0.1, "value", "error", "cannot be evaluated", None, "2 is not a budget"
        ),
    )
    return replace(audit, gates=gates, verdict=replace(audit.verdict, gate="failed"), exit_code=3)


def hostile(text: str = HOSTILE) -> Audit:
    """Every string that comes from outside tries to break the page."""
    audit = vacuous(40)
    nasty = replace(audit.model, name=text, source=text, architecture=text, weights_file=text, licence=HOSTILE)
    data = replace(audit.dataset, name=text, split="te\ud800st", source=text, class_names=(text,) * 10)
    ledger = tuple(replace(entry, name=text, source=text) for entry in audit.bound.layers) if audit.bound else ()
    return replace(
        audit, run=text, model=nasty, dataset=data, command=("lipaudit", "run", text), arithmetic=text,
        bound=network(ledger), skipped=(Skip(text, text),), warnings=(text,), config={text: [text]},
        environment={text: text}, timing={text: 1.0},
        attacks=tuple(replace(a, name=text, settings=text, flags=(text,)) for a in audit.attacks),
        samples=replace(audit.samples, attack=tuple(text if by else None for by in audit.samples.attack)),
        thumbnails=(*audit.thumbnails[:2], replace(audit.thumbnails[2], original="javascript:alert(1)")),
        verdict=replace(audit.verdict, headline=text, sentences=(text,)),
        gates=(Gate(text, 0.5, "value", "error", "failed", 0.4, text),),
        findings=(Finding("LA001", "warn", text, text, text, text),),
    )  # fmt: skip


def filed(audit: Audit, *gates: str) -> Audit:
    """As lipaudit would have written it: one bound that the radii follow from, and all that follows from the rows."""
    s = audit.samples
    ratios = [m / r for m, r in zip(s.margin, s.radius, strict=True) if r > 0]
    steepest = min(ratios, default=1.0)
    many = range(audit.model.classes)
    pairs = tuple(tuple(0.0 if i == j else steepest for j in many) for i in many)
    ledger = chain_ledger([("network", "linear", steepest)])
    bound = NetworkBound(ledger, ledger[0].log10_so_far, pairs, audit.model.input_shape)
    columns = replace(s, image=tuple(f"{row:016x}" for row in s.index), native_distance=s.distance)
    digest = digest_of(columns.index, columns.label, columns.image)
    found = [[d for d, by in zip(s.distance, s.attack, strict=True) if by == a.name] for a in audit.attacks]
    attacks = (
        replace(a, broken=len(d), closest=len(d), attacked=sum(s.attacked), median_distance=median(d) if d else None)
        for a, d in zip(audit.attacks, found, strict=True)
    )
    made = replace(
        audit, samples=columns, bound=bound, slope=0.5 * steepest, slope_share=0.5, attacks=tuple(attacks),
        clean=intervals.rate("0", s.correct()), thumbnails=thumbnails(s), arithmetics=arithmetics(s, audit.threat.eps),
        dataset=replace(audit.dataset, samples=len(s.index), rows_sha256=digest),
        config={**audit.config, "eps": list(audit.threat.eps)},
    )  # fmt: skip
    return conclude(made, conditions(gates))


def radii_only(audit: Audit) -> Audit:
    """Without the optional columns and tables that would have to change with the radii."""
    columns = {field.name: () for field in fields(audit.samples) if field.default == () and field.name != "method"}
    tables = {field.name: () for field in fields(audit) if field.name == "arithmetics"}
    return replace(audit, samples=replace(audit.samples, **columns), **tables)


ALL: dict[str, Callable[[], Audit]] = {
    make.__name__: make
    for make in (
        strong, vacuous, weak, invalid, no_attacks, unproved, flat, single, all_wrong, random_weights, deep,
        thousand_classes, gated, hostile,
    )
}  # fmt: skip
