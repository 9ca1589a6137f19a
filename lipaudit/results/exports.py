"""What other people's tools read of an audit: CI, badges, bills of materials, attestations."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from lipaudit.results.audit import Audit, Rate
from lipaudit.results.formatting import clean, percent, plural
from lipaudit.results.metrics import all_findings, dataset_name, rate_at

_STATES = {"passed": "pass", "failed": "fail", "cannot be evaluated": "not run"}
Case = tuple[str, str, str, str]
"""Identifier, name, state as of a check, what to say."""


def cases(audit: Audit) -> Iterator[Case]:
    """Every check and every gate. A gate that only warns is a warning when it fails."""
    for finding in all_findings(audit):
        said = ". ".join(filter(None, (finding.title, finding.value, finding.fix)))
        yield finding.id, finding.title, finding.state, said
    for gate in audit.gates:
        state = "warn" if gate.state == "failed" and gate.level == "warn" else _STATES[gate.state]
        said = gate.why or (f"measured {percent(gate.value)}" if gate.value is not None else "")
        yield "gate", gate.expression, state, said


def to_junit(audit: Audit) -> str:
    """JUnit's XML: a test case per check and gate. Failed ones fail, what was not run is skipped."""
    every = list(cases(audit))
    count = {state: sum(case[2] == state for case in every) for state in ("fail", "not run")}
    suite = ElementTree.Element(
        "testsuite",
        name=f"lipaudit {clean(audit.model.name)}",
        tests=str(len(every)),
        failures=str(count["fail"]),
        errors="0",
        skipped=str(count["not run"]),
        timestamp=audit.started,
        time=f"{sum(audit.timing.values()):.3f}",
    )
    for identifier, name, state, said in every:
        case = ElementTree.SubElement(suite, "testcase", classname=f"lipaudit.{identifier}", name=clean(name, 200))
        if state in ("fail", "not run"):
            kind = "failure" if state == "fail" else "skipped"
            ElementTree.SubElement(case, kind, message=clean(said, 500))
        elif said:
            ElementTree.SubElement(case, "system-out").text = clean(f"{state}: {said}", 500)
    whole = ElementTree.Element("testsuites")
    whole.append(suite)
    ElementTree.indent(whole)
    return ElementTree.tostring(whole, encoding="unicode", xml_declaration=True) + "\n"


def workflow_commands(audit: Audit) -> list[str]:
    """Commands for the log of a GitHub workflow: an annotation for each check or gate that failed or warns."""
    words = {"fail": "error", "warn": "warning"}
    return [
        f"::{words[state]} title={_escaped(f'lipaudit {identifier}', title=True)}::{_escaped(f'{name}: {said}')}"
        for identifier, name, state, said in cases(audit)
        if state in words
    ]


def _escaped(text: str, *, title: bool = False) -> str:
    """As GitHub's commands want it: https://docs.github.com/actions/reference/workflow-commands-for-github-actions."""
    text = clean(text, 500).replace("%", "%25")
    return text.replace(":", "%3A").replace(",", "%2C") if title else text


def to_badge(audit: Audit) -> str:
    """A badge as shields.io's endpoint reads it: https://shields.io/badges/endpoint-badge."""
    integrity, gate = audit.verdict.integrity, audit.verdict.gate
    message, colour = str(integrity), "red" if integrity == "INVALID" else "lightgrey"
    if integrity == "SOUND":
        rate = next(filter(None, (rate_at(audit.certified, eps) for eps in audit.threat.eps)), None)
        message = (
            f"{percent(rate.value)} certified at {rate.eps} ({audit.threat.norm})" if rate else "nothing certified"
        )
        colour = {"passed": "brightgreen", "failed": "red"}.get(gate, "blue")
        message += {"passed": ", gate passed", "failed": ", gate failed"}.get(gate, "")
    return json.dumps({"schemaVersion": 1, "label": "lipaudit", "message": message, "color": colour}, indent=2) + "\n"


def to_intoto(audit: Audit) -> str:
    """An in-toto statement: the weights are the subject, the checks and gates the tests.

    Sources: https://in-toto.io/Statement/v1 and https://in-toto.io/attestation/test-result/v0.1.
    """
    named: dict[str, list[str]] = {"pass": [], "warn": [], "fail": []}
    for identifier, name, state, _ in cases(audit):
        if state in named:
            named[state].append(identifier if identifier != "gate" else f"gate {clean(name)}")
    passed = audit.exit_code == 0
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": clean(audit.model.weights_file or audit.model.name), "digest": _weights(audit)}],
        "predicateType": "https://in-toto.io/attestation/test-result/v0.1",
        "predicate": {
            "result": "FAILED" if not passed else "WARNED" if named["warn"] else "PASSED",
            "configuration": [
                {"name": f"{clean(audit.run)}.json", "digest": {"sha256": result_digest(audit)}},
                {"name": clean(audit.dataset.name), "digest": {"sha256": audit.dataset.sha256}},
            ],
            "passedTests": named["pass"],
            "warnedTests": named["warn"],
            "failedTests": named["fail"],
        },
    }
    return json.dumps(statement, indent=2, ensure_ascii=False) + "\n"


def result_digest(audit: Audit) -> str:
    """SHA-256 of the result file."""
    return hashlib.sha256(audit.to_json().encode()).hexdigest()


def _weights(audit: Audit) -> dict[str, str]:
    """The digest of the file, or of the tensors where there was none."""
    if audit.model.weights_file_sha256:
        return {"sha256": audit.model.weights_file_sha256}
    return {"lipaudit-tensors-sha256": audit.model.weights_sha256}


def to_cyclonedx(audit: Audit) -> str:
    """A bill of materials with the model, its rates, and a claim per budget with evidence and counter-evidence.

    The claim is that no change within the budget changes the answer for any audited image: what is proved is evidence
    for it, adversarial examples are counter-evidence. Source: CycloneDX 1.7, https://cyclonedx.org/specification.
    """
    model, version = audit.model, clean(audit.environment.get("lipaudit", ""), 20)
    hashes = [{"alg": "SHA-256", "content": model.weights_file_sha256}] if model.weights_file_sha256 else []
    about = f"{dataset_name(audit)}, {plural(audit.dataset.samples, 'image')}"
    component = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": clean(model.name),
        "hashes": hashes,
        "modelCard": {
            "modelParameters": {
                "task": "image classification",
                "modelArchitecture": clean(model.architecture),
                "inputs": [{"format": "x".join(map(str, model.input_shape))}],
                "outputs": [{"format": f"{model.classes} logits"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(audit, about))},
        },
    }
    digest = result_digest(audit)
    evidence, claims = [], []
    for view, eps in _budgets(audit):
        name = f"{view.norms[0]}-{eps}" if audit.other_norms else eps
        budgets = f"{eps} ({view.threat.norm}, {view.threat.units})"
        proved, empirical = rate_at(view.certified, eps), rate_at(view.empirical, eps)
        claim: dict[str, Any] = {
            "bom-ref": f"claim-{name}",
            "target": "model",
            "predicate": f"For no audited image does a change of at most {budgets} change the answer.",
            "reasoning": clean(audit.arithmetic, 400),
        }
        if proved is not None:
            said = f"Proved for {proved.count} of {proved.total} images ({about})."
            evidence.append(_evidence(f"proof-{name}", "certified accuracy", said, audit, digest))
            claim["evidence"] = [f"proof-{name}"]
        if empirical is not None and empirical.count < empirical.total:
            said = f"Misclassified, or an adversarial example was found: {empirical.total - empirical.count} images."
            evidence.append(_evidence(f"attack-{name}", "empirical robust accuracy", said, audit, digest))
            claim["counterEvidence"] = [f"attack-{name}"]
        claims.append(claim)
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.UUID(digest[:32])}",
        "version": 1,
        "metadata": {
            "timestamp": audit.started,
            "tools": {"components": [{"type": "application", "name": "lipaudit", "version": version}]},
            "component": component,
        },
        "declarations": {"claims": claims, "evidence": evidence},
    }
    return json.dumps(bom, indent=2, ensure_ascii=False) + "\n"


def _budgets(audit: Audit) -> Iterator[tuple[Audit, str]]:
    """Every budget, with the audit in its norm."""
    for view in audit.views:
        yield from ((view, eps) for eps in view.threat.eps)


def _metrics(audit: Audit, about: str) -> Iterator[dict[str, Any]]:
    def metric(kind: str, rate: Rate, where: str) -> dict[str, Any]:
        limits = {"lowerBound": f"{rate.low:.6f}", "upperBound": f"{rate.high:.6f}"}
        return {"type": kind, "value": f"{rate.value:.6f}", "slice": where, "confidenceInterval": limits}

    yield metric("accuracy", audit.clean, about)
    for view in audit.views:
        for kind, rates in (("certified accuracy", view.certified), ("empirical robust accuracy", view.empirical)):
            for rate in rates:
                yield metric(kind, rate, f"{about}, {rate.eps} {view.threat.norm}")


def _evidence(reference: str, what: str, said: str, audit: Audit, digest: str) -> dict[str, Any]:
    return {
        "bom-ref": reference,
        "propertyName": what,
        "description": said,
        "data": [{"name": f"result file {clean(audit.run)}.json, sha256 {digest}"}],
        "created": audit.started,
    }
