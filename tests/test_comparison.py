"""Two results: paired image by image, refused where they answer different questions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import audits
import pytest
from audits import radii_only
from scipy.stats import binomtest

from lipaudit.errors import CompareError
from lipaudit.report.comparison import comparison_lines, drop_lines
from lipaudit.results.audit import TIME_LIMIT, Audit
from lipaudit.verdict.comparison import Change, Comparison, compare, differences, mcnemar, paired_interval, to_plain


def text(found: Comparison, most: float | None = None) -> str:
    lines = [*comparison_lines(found), *drop_lines(found, most)]
    return "\n".join("".join(span.text for span in line) for line in lines)


def weaker(audit: Audit, rows: int, factor: float = 0.1) -> Audit:
    """The same run of another network: the first `rows` certified images have smaller radii and are broken sooner."""
    radius, distance = list(audit.samples.radius), list(audit.samples.distance)
    for row in [row for row, value in enumerate(radius) if value > 0.2][:rows]:
        radius[row] *= factor
        found = distance[row]
        distance[row] = (found if found is not None else 1.0) * factor
    columns = replace(audit.samples, radius=tuple(radius), distance=tuple(distance))
    audit = radii_only(replace(audit, samples=columns))
    return replace(audit, run="la-new", model=replace(audit.model, weights_sha256="77" * 32))


def of(found: Comparison, measure: str, eps: str = "") -> Change:
    return next(change for change in found.changes if (change.measure, change.eps) == (measure, eps))


# --- statistics


def test_mcnemar_is_a_sign_test() -> None:
    for gained, lost in ((0, 0), (0, 1), (3, 3), (1, 9), (12, 4), (150, 210), (4000, 6000)):
        p = binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
        assert mcnemar(gained, lost) == pytest.approx(p, rel=1e-9)
        assert mcnemar(gained, lost) == mcnemar(lost, gained)


@pytest.mark.parametrize(("up", "down"), [(0.02, 0.02), (0.1, 0.02), (0.3, 0.1), (0.05, 0.4), (0.0, 0.1)])
def test_the_interval_covers_the_difference(up: float, down: float) -> None:
    """Exactly: over all tables of 40 images, with their probabilities."""
    total, covered = 40, 0.0
    for gained in range(total + 1):
        for lost in range(total + 1 - gained):
            low, high = paired_interval(gained, lost, total)
            if low <= up - down <= high:
                rest = total - gained - lost
                ways = math.comb(total, gained) * math.comb(total - gained, lost)
                covered += ways * up**gained * down**lost * (1 - up - down) ** rest
    assert covered >= 0.94


def test_the_interval_stays_within_the_possible() -> None:
    assert paired_interval(1, 0, 1)[1] <= 1
    assert paired_interval(0, 1, 1)[0] >= -1
    low, high = paired_interval(0, 0, 500)
    assert low == -high < 0


# --- pairing


def test_the_same_result_has_not_changed() -> None:
    found = compare(audits.strong(100), audits.strong(100))

    assert {change.word for change in found.changes} == {"no change"}
    assert [change.measure for change in found.changes] == ["clean", *["certified", "empirical"] * 4]
    assert (found.layers, found.unlike) == ((), ())
    assert found.exit_code(0.0) == 0
    assert "no image changed" in text(found)
    assert "same weights" in text(found)


def test_images_are_paired_not_counted() -> None:
    base = audits.strong(200)
    new = weaker(base, 30)
    found = compare(base, new)

    proved = of(found, "certified", "36/255")
    lost = [i for i, a, b in zip(base.samples.index, base.samples.radius, new.samples.radius, strict=True)
            if a > 36 / 255 >= b]  # fmt: skip
    assert list(proved.lost) == lost
    assert proved.gained == ()
    assert (proved.new - proved.base, proved.total) == (-len(lost), 200)
    assert proved.low < proved.difference < proved.high < 0
    assert proved.word == "worse"
    assert of(found, "clean").word == "no change"
    back = of(compare(new, base), "certified", "36/255")
    assert (back.gained, back.word) == (proved.lost, "better")
    assert f"{len(lost)} images no longer certified at 36/255: #{lost[0]} #{lost[1]} " in text(found)
    assert f"and {len(lost) - 10} more" in text(found)
    assert "weights differ" in text(found)


def test_a_small_change_is_within_noise() -> None:
    base = audits.strong(200)
    change = of(compare(base, weaker(base, 3)), "certified", "0.25")

    assert change.lost
    assert change.p > 0.05
    assert change.word == "within noise"


def test_another_effort_at_proving_is_noted() -> None:
    base = replace(audits.strong(50), config={"local": "on", "tight": False, "origin": {}})
    found = compare(base, replace(base, config={"local": "off", "tight": False, "origin": {"local": "--local"}}))

    assert "local on → off: another effort at proving" in text(found)
    assert sum("effort" in note for note in found.notes) == 1


def test_layers_that_moved_most_come_first() -> None:
    base = audits.strong(50)
    layers = list(base.bound.layers)
    for place, factor in ((3, 0.5), (5, 3.0), (7, 1.0001)):
        upper = replace(layers[place].upper, value=layers[place].upper.value * factor)
        layers[place] = replace(layers[place], upper=upper, lower=None)
    new = replace(base, bound=replace(base.bound, layers=tuple(layers), log10=base.bound.log10 - 1))
    found = compare(base, new)

    assert [layer.name for layer in found.layers] == [layers[5].name, layers[3].name]
    assert "−1.00 decades" in text(found)
    other = compare(base, replace(base, bound=audits.flat().bound))
    assert other.layers == ()
    assert "architectures differ" in text(other)


# --- refusals


UNLIKE: dict[str, tuple[Callable[[Audit], Audit], str]] = {
    "images": (lambda a: replace(a, samples=replace(a.samples, index=tuple(i + 1 for i in a.samples.index))), "images"),
    "pixels": (lambda a: replace(a, dataset=replace(a.dataset, sha256="00" * 32)), "images: sha256"),
    "data": (lambda a: replace(a, dataset=replace(a.dataset, name="CIFAR-100")), "data set: CIFAR-10, then CIFAR-100"),
    "number": (lambda _: audits.strong(60), "number of images: 50, then 60"),
    "budgets": (
        lambda a: replace(a, threat=replace(a.threat, eps=("36/255",))),
        "ε: 36/255, 0.25, 0.5, 1, then 36/255",
    ),
    "range": (lambda a: replace(a, threat=replace(a.threat, low=-1.0)), "range of inputs: 0, 1, then -1, 1"),
    "mean": (lambda a: replace(a, model=replace(a.model, mean=())), "preprocessing, mean"),
    "std": (lambda a: replace(a, model=replace(a.model, std=(1.0, 1.0, 1.0))), "preprocessing, std"),
    "arithmetic": (lambda a: replace(a, arithmetic="another"), "arithmetic"),
    "attack": (lambda a: replace(a, attacks=a.attacks[1:]), "attacks only in the first: APGD-CE"),
    "settings": (
        lambda a: replace(a, attacks=(replace(a.attacks[0], settings="5 iterations"), *a.attacks[1:])),
        "settings of APGD-CE: 100 iterations, eps 36/255, then 5 iterations",
    ),
    "unfinished": (
        lambda a: replace(a, attacks=(replace(a.attacks[0], why=TIME_LIMIT), *a.attacks[1:])),
        "attacks unfinished in the second: APGD-CE",
    ),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_unlike_runs_are_refused_by_what_differs(case: str) -> None:
    change, says = UNLIKE[case]
    base = audits.strong(50)

    with pytest.raises(CompareError, match="not comparable") as refused:
        compare(base, change(base))

    assert says in str(refused.value)
    assert "--force" in str(refused.value)


def test_everything_that_differs_is_said() -> None:
    base = audits.strong(50)
    new = UNLIKE["budgets"][0](UNLIKE["images"][0](UNLIKE["attack"][0](base)))

    said = " ".join(differences(base, new))

    assert all(UNLIKE[case][1] in said for case in ("budgets", "images", "attack"))


def test_force_says_not_comparable_and_judges_nothing() -> None:
    base = audits.strong(50)
    found = compare(base, UNLIKE["settings"][0](base), force=True)

    assert "NOT COMPARABLE" in text(found)
    assert "same images" not in text(found)
    assert "cannot be evaluated" in text(found, 0.5)
    assert (found.exit_code(0.5), found.exit_code(None)) == (5, 0)
    assert json.loads(json.dumps(to_plain(found)))["comparable"] is False
    with pytest.raises(CompareError, match="no image in common"):
        compare(base, replace(base, samples=replace(base.samples, index=tuple(range(10**6, 10**6 + 50)))), force=True)


def test_what_a_budget_is_called_does_not_matter() -> None:
    base = audits.strong(50)
    same = replace(base, threat=replace(base.threat, eps=("36/255", "1/4", "0.50", "1.0")))

    assert differences(base, same) == ()


def test_broken_certificates_are_not_compared_as_if_they_held() -> None:
    base, bad = audits.strong(200), audits.invalid(200)
    columns, same = bad.samples, replace(base, samples=base.samples)
    for found in (compare(same, replace(bad, samples=columns)), compare(bad, same)):
        assert {change.measure for change in found.changes} == {"clean", "empirical"}
        assert (found.layers, found.log10_bound) == ((), None)
        assert "is INVALID: nothing that rests on certificates is compared" in text(found)
        assert found.exit_code(0.1) != 0
    assert compare(base, bad).exit_code(None) == 4
    assert compare(bad, base).exit_code(None) == 0
    claims = replace(bad, verdict=base.verdict)  # the file says SOUND, its numbers do not
    assert compare(base, claims).integrity == ("SOUND", "INVALID")


# --- a largest drop


def test_a_drop_past_the_limit_is_code_3() -> None:
    base = audits.strong(200)
    found = compare(base, weaker(base, 30))
    fall = max(-change.difference for change in found.changes)

    assert found.exit_code(fall) == 0
    assert found.exit_code(math.nextafter(fall, 0)) == 3
    assert "failed  certified" in text(found, 0.02)
    assert "passed  no share fell by more than" in text(found, fall)
