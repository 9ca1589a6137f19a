"""Shards, merged, are one audit; what does not belong together is refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Call, call
from sharded import SETTINGS, data, network, pair, timeless
from usermodels import user_module

import lipaudit
from lipaudit.engines import audit_in_shards
from lipaudit.errors import BadThreat, LoadError, ReportError
from lipaudit.results.audit import Audit
from lipaudit.settings import Settings, part_of
from lipaudit.verdict.consistency import digest_of

__all__ = ["call", "pair", "user_module"]


@pytest.fixture(scope="module")
def whole() -> Audit:
    return lipaudit.audit(network(), *data(), **SETTINGS)


@pytest.fixture(scope="module")
def shards() -> list[Audit]:
    return [lipaudit.audit(network(), *data(), **SETTINGS, shard=(number, 3)) for number in (1, 2, 3)]


def test_merged_shards_are_the_audit_of_all_samples(whole: Audit, shards: list[Audit]) -> None:
    merged = lipaudit.merge([shards[2], shards[0], shards[1]])

    for column in ("index", "label", "prediction", "margin", "radius", "attacked", "method"):
        assert getattr(merged.samples, column) == getattr(whole.samples, column), column
    assert [d is None for d in merged.samples.distance] == [d is None for d in whole.samples.distance]
    distances = [[d or 0.0 for d in audit.samples.distance] for audit in (merged, whole)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-4)
    assert (merged.clean, merged.certified) == (whole.clean, whole.certified)
    assert merged.empirical == whole.empirical
    assert merged.dataset == whole.dataset
    assert merged.bound.pairwise == whole.bound.pairwise
    assert merged.rounding == whole.rounding
    for one, other in zip(merged.attacks, whole.attacks, strict=True):
        assert (one.name, one.attacked, one.broken, one.status) == (
            other.name,
            other.attacked,
            other.broken,
            other.status,
        )
        assert (one.median_distance or 0) == pytest.approx(other.median_distance or 0, rel=1e-3)
    assert merged.slope == max(shard.slope for shard in shards)
    assert merged.timing["attacks"] == pytest.approx(sum(shard.timing["attacks"] for shard in shards))
    assert merged.verdict.integrity == "SOUND"
    assert [finding.id for finding in merged.findings] == [finding.id for finding in whole.findings]
    assert [(part.number, part.of, part.samples) for part in merged.parts] == [(1, 3, 4), (2, 3, 4), (3, 3, 3)]
    assert [part.run for part in merged.parts] == [shard.run for shard in shards]
    assert merged.shard is None
    assert {shown.sample for shown in merged.thumbnails} == {shown.sample for shown in whole.thumbnails}
    assert "3 runs, times summed" in merged.to_html()
    assert "2 of 3: this result is about a part of the images" in shards[1].to_html()


def test_files_of_shards_merge_as_the_shards_do(shards: list[Audit], tmp_path: Path) -> None:
    files = []
    for shard in shards:
        files.append(tmp_path / f"{shard.run}.json")
        files[-1].write_text(shard.to_json(), encoding="utf-8")
    merged = lipaudit.merge(lipaudit.load_audit(file) for file in files)
    assert timeless(merged) == timeless(lipaudit.merge(shards))
    assert lipaudit.results.audit.Audit(**vars(merged)).to_json() == merged.to_json()


def test_the_local_engine_does_what_shards_alone_do(shards: list[Audit]) -> None:
    together = audit_in_shards(network(), *data(), **SETTINGS, shards=3)
    assert timeless(together) == timeless(lipaudit.merge(shards))


def rows(shard: Audit, **columns: Any) -> Audit:
    """The shard with other columns, and all that follows from them."""
    samples = replace(shard.samples, **columns)
    digest = digest_of(samples.index, samples.label, samples.image)
    arithmetics = tuple(replace(p, radius=samples.radius) if p.headline else p for p in shard.arithmetics)
    dataset = replace(shard.dataset, rows_sha256=digest)
    return replace(shard, samples=samples, arithmetics=arithmetics, dataset=dataset)


def between(shard: Audit) -> tuple[float, ...]:
    """Radii larger than proved that no attack contradicts."""
    pairs = zip(shard.samples.radius, shard.samples.distance, strict=True)
    return tuple((radius + distance) / 2 if distance else radius for radius, distance in pairs)


def scaled(shard: Audit, factor: float) -> Audit:
    """All bounds larger."""
    bound, more = shard.bound, math.log10(factor)
    first, *others = bound.layers
    upper = replace(first.upper, value=factor * first.upper.value)
    first = replace(first, upper=upper, candidates=(), log10_so_far=first.log10_so_far + more)
    others = (replace(line, log10_so_far=line.log10_so_far + more) for line in others)
    pairs = tuple(tuple(factor * value for value in row) for row in bound.pairwise)
    samples = rows(shard, radius=tuple(radius / factor for radius in shard.samples.radius))
    bound = replace(bound, layers=(first, *others), pairwise=pairs, log10=bound.log10 + more)
    return replace(samples, bound=bound, slope_share=shard.slope_share / factor)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_layer_that_is_refuted_in_one_shard_is_refuted_in_the_whole(place: int, shards: list[Audit]) -> None:
    bound = shards[place].bound
    layers = (replace(bound.layers[0], lower=2 * bound.layers[0].upper.value), *bound.layers[1:])
    refuted = replace(shards[place], bound=replace(bound, layers=layers, log10=bound.log10 - 1e-9))

    merged = lipaudit.merge([refuted if k == place else shard for k, shard in enumerate(shards)])

    assert merged.verdict.integrity == "INVALID"
    assert merged.exit_code == 4


def test_without_a_bound_in_one_shard_there_is_none_of_the_whole(shards: list[Audit]) -> None:
    none = replace(shards[1].samples, radius=(0.0,) * 4)
    nothing = tuple(replace(p, radius=(0.0,) * len(p.radius)) for p in shards[1].arithmetics)
    unproved = replace(shards[1], bound=None, samples=none, arithmetics=nothing)
    merged = lipaudit.merge([shards[0], unproved, shards[2]])
    assert merged.bound is None
    assert merged.verdict.integrity == "UNPROVED"


def test_a_contradiction_in_one_shard_is_one_of_the_whole(shards: list[Audit]) -> None:
    samples = shards[1].samples
    row = next(k for k, distance in enumerate(samples.distance) if distance is not None and samples.radius[k] > 0)
    inside = tuple(samples.radius[k] / 2 if k == row else distance for k, distance in enumerate(samples.distance))
    lie = replace(samples, distance=inside)
    merged = lipaudit.merge([shards[0], replace(shards[1], samples=lie), shards[2]])
    assert (merged.verdict.integrity, merged.exit_code, merged.certified) == ("INVALID", 4, ())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s[:2], "all 3 shards, got 2: 3/3 missing"),
        (lambda s: s[:0], "got none"),
        (lambda s: [*s, s[1]], r"each shard once, got 2/3 2 times \(la-"),
        (lambda s: [s[0], s[1], replace(s[2], shard=replace(s[2].shard, of=4))], "shards of 3 and of 4"),
        (lambda s: [s[0], s[1], replace(s[2], shard=None)], r"`lipaudit run --shard I/N`\), got la-.*, a whole run"),
        (lambda s: [s[0], replace(s[1], model=replace(s[1].model, dtype="x")), s[2]], "another model in .*: dtype"),
        (
            lambda s: [s[0], replace(s[1], shard=replace(s[1].shard, whole=replace(s[1].dataset, seed=5))), s[2]],
            "another data in .*seed",
        ),
        (lambda s: [s[0], s[1], replace(s[2], threat=replace(s[2].threat, eps=("1",)))], "another threat in .*: eps"),
        (lambda s: [s[0], s[1], replace(s[2], attacks=s[2].attacks[:1])], "another attacks in"),
        (lambda s: [s[0], s[1], replace(s[2], config=s[2].config | {"seed": 1})], "another settings in .*: seed"),
        (lambda s: [s[0], replace(s[1], environment=s[1].environment | {"torch": "1"}), s[2]], "versions in .*: torch"),
        (lambda s: [s[0], replace(s[1], samples=s[2].samples), s[2]], "expected 4 samples in shard 2/3, got 3"),
        (lambda s: [s[0], rows(s[1], image=s[0].samples.image), s[2]], "each in its place"),
        (lambda s: [s[0], rows(s[1], index=s[0].samples.index), s[2]], "indices twice"),
        (lambda s: [rows(one, index=one.samples.index[::-1]) for one in s], "each in its place"),
        (lambda s: [s[0], rows(s[1], radius=between(s[1])), s[2]], r"samples.radius\[.\]: expected at most margin / b"),
        (lambda s: [s[0], scaled(s[1], 1000.0), s[2]], "apart|at most the radii of real arithmetic"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(shards: list[Audit], change: Any, says: str) -> None:
    with pytest.raises(ReportError, match=says) as caught:
        lipaudit.merge(change(shards))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 12)])
def test_a_shard_that_cannot_be_is_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(BadThreat, match="expected a shard from 1/"):
        lipaudit.audit(network(), *data(), attacks="none", shard=shard)


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/2"])
def test_texts_that_name_no_shard(text: str) -> None:
    assert part_of("3/8") == (3, 8)
    with pytest.raises(ValueError, match="expected a shard such as 3/8"):
        part_of(text)


def test_shards_on_the_command_line(call: Call, pair: list[object]) -> None:
    for number in (1, 2):
        result = call("run", *pair, "--shard", f"{number}/2", "--out", "parts", "--format", "json", "-q")
        assert result.code == 0, result.err
    result = call("merge", *sorted(Path("parts").glob("*.json")), "--out", "merged", "-q")
    assert result.code == 0, result.err
    assert call("run", *pair, "--shards", 2, "--out", "together", "--format", "json", "-q").code == 0
    (merged,) = Path("merged").glob("*.json")
    (together,) = Path("together").glob("*.json")
    assert merged.with_suffix(".html").is_file()
    one, two = lipaudit.load_audit(merged), lipaudit.load_audit(together)
    assert timeless(one) == timeless(two)
    assert one.command[:2] == ("lipaudit", "merge")
    parts = sorted(Path("parts").glob("*.json"))
    assert "got several: stdout holds one" in call("merge", *parts, "-o", "-", "--format", "json,html").err
    refused = call("merge", *parts[:1], "--out", "no")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "missing" in refused.err
    assert not Path("no").exists()


def test_an_interrupted_run_in_shards_keeps_the_finished_ones(
    call: Call, pair: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lipaudit import engines

    seen: list[tuple[int, int]] = []
    honest = engines.audit

    def audit(network: Any, inputs: Any, labels: Any, settings: Settings, *given: Any, **options: Any) -> Audit:
        seen.append(settings.shard)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return honest(network, inputs, labels, settings, *given, **options)

    monkeypatch.setattr(engines, "audit", audit)
    assert call("run", *pair, "--shards", 3, "-q").code == 130
    (folder,) = Path("reports").glob("*.partial")
    assert call("run", "--resume", folder.name, "-q").code == 0
    assert seen == [(1, 3), (2, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in Path("reports").iterdir()) == [f"{folder.stem}.html", f"{folder.stem}.json"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shard", "3/2", "--samples", 5, "--attacks", "none"], "expected a shard such as 3/8"),
        (["--shard", "1/2"], "--shard needs --samples and --attacks"),
        (["--shard", "1/2", "--shards", 2], "leave one out"),
        (["--address", "auto"], "add --engine ray"),
    ],
)
def test_options_that_contradict_each_other(call: Call, options: list[object], says: str) -> None:
    result = call("run", *options)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert says in result.err


def test_without_ray_its_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(LoadError, match=r"pip install 'lipaudit\[ray\]'"):
        audit_in_shards(network(), *data(), shards=2, engine="ray")
