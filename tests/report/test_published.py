"""Published accuracies: found at exactly their data set, norm and budget, each with its source."""

from __future__ import annotations

import pytest

from lipaudit.errors import BadThreat
from lipaudit.results.published import Published, _shipped, figures, published_at

ISSUED = {
    ("certified", "cifar10", "l2"): {"36/255": 78.1, "72/255": 66.6, "108/255": 53.5},
    ("certified", "cifar100", "l2"): {"36/255": 50.1, "72/255": 38.5, "108/255": 29.0},
    ("certified", "tinyimagenet", "l2"): {"36/255": 37.0, "72/255": 26.8, "108/255": 18.6},
    ("certified", "imagenet", "l2"): {"36/255": 38.3},
    ("certified", "cifar10", "linf"): {"2/255": 64.61, "8/255": 35.74},
    ("certified", "tinyimagenet", "linf"): {"1/255": 30.67},
    ("certified", "mnist", "linf"): {"0.3": 93.7},
    ("empirical", "cifar10", "linf"): {"8/255": 73.71},
    ("empirical", "cifar10", "l2"): {"0.5": 84.97},
    ("empirical", "imagenet", "linf"): {"4/255": 59.68},
}
"""As their sources have them."""


def test_the_table_holds_what_its_sources_say_and_nothing_else() -> None:
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for one in _shipped():
        assert one.title
        assert one.place
        assert 2017 < one.year < 2100
        assert one.link.startswith("https://github.com/")
        found.setdefault((one.kind, one.dataset, one.norm), {})[one.eps] = round(100 * one.value, 9)
    assert found == ISSUED


@pytest.mark.parametrize(
    ("dataset", "norm", "eps", "box"),
    [
        ("cifar10", "linf", "8/255", (0.0, 1.0)),
        ("CIFAR-10", "Linf", 8 / 255, (0.0, 1.0)),
        ("cifar_10:somewhere", "linf", "16/255", (-1.0, 1.0)),
        ("cifar10", "linf", "8", (0.0, 255.0)),
        ("cifar10", "linf", 255 * (8 / 255), (0.0, 255.0)),
    ],
)
def test_a_figure_is_found_however_its_data_set_and_budget_are_written(dataset, norm, eps, box) -> None:
    found = published_at(dataset, norm, eps, "certified", box)
    assert isinstance(found, Published)
    assert (found.value, found.year) == (pytest.approx(0.3574), 2026)


@pytest.mark.parametrize(
    ("dataset", "norm", "eps"),
    [("cifar10", "linf", "4/255"), ("cifar10", "l1", "8/255"), ("cifar1", "linf", "8/255"), ("digits", "l2", "36/255")],
)
def test_no_other_budget_norm_or_data_set_has_it(dataset: str, norm: str, eps: str) -> None:
    assert published_at(dataset, norm, eps, "certified") is None


def test_what_makes_no_sense_is_refused() -> None:
    source = '[sources.x]\ntitle = "t"\nyear = 2020\nlink = "l"\nplace = "p"\n'
    entry = '[[accuracy]]\nkind = "{}"\ndataset = "a"\nnorm = "l2"\nsource = "x"\npercent = {{ {} }}\n'
    assert len(figures(source + entry.format("certified", '"1" = 5.0') + entry.format("empirical", '"1" = 5.0'))) == 2
    for kind, percent in (("proved", '"1" = 5.0'), ("certified", '"1" = 0.0'), ("certified", '"1" = 1.0, "1.0" = 2.0')):
        with pytest.raises(ValueError, match="one accuracy in per cent"):
            figures(source + entry.format(kind, percent))
    with pytest.raises(BadThreat, match="expected a norm"):
        published_at("a", "l3", 1, "certified")
