"""The public functions. The only place that turns the name of a model into a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lipaudit.certification.certificates import Certificates, as_asked, certify_with
from lipaudit.certification.inputs import check_inputs, check_labels, doubt_of
from lipaudit.certification.network_bound import compose
from lipaudit.certification.norm_bounds import bound_in
from lipaudit.errors import BadThreat
from lipaudit.graph.wrappers import Prepared, prepared
from lipaudit.loading.model_names import PAIRS, canonical
from lipaudit.loading.models import load_model
from lipaudit.loading.user_data import with_labels
from lipaudit.progress import Progress
from lipaudit.results.audit import Audit, ModelFacts
from lipaudit.results.bounds import NetworkBound
from lipaudit.runs.audit import audit as audit_network
from lipaudit.runs.provenance import Source
from lipaudit.settings import Settings, settings_from, signature
from lipaudit.verdict.gates import conditions, refuse_unmeasured

BOUNDING = ("norm", "norms", "global_method", "mean", "std", "device", "domain")
CERTIFYING = (*BOUNDING, "local", "local_samples", "arithmetic")
"""The settings that `bound` and `certify` take."""
BEST = Settings(norms="best")
"""Where no report shows what other methods prove."""
METHODS = {"best": "auto", "global": "off", "local": "on", "thorough": "thorough"}
"""What `method` of `certify` is called now, as `local`."""

F = TypeVar("F", bound=Callable[..., Any])


def _written_out(*takes: str) -> Callable[[F], F]:
    """Shows the keywords of a function in its signature: those of these settings, of all if none are named."""

    def show(function: F) -> F:
        function.__signature__ = signature(function, takes or None)  # type: ignore[attr-defined]  # not among those of a Callable
        return function

    return show


@_written_out(*BOUNDING)
def bound(
    model: nn.Module | Any,
    input_shape: tuple[int, ...],
    *,
    settings: Settings = BEST,
    progress: Progress | None = None,
    **keywords: Any,
) -> NetworkBound:
    """A proved bound of the Lipschitz constant of `model`, from raw inputs to logits.

    Inputs move in `norm`: "l2", "linf" or "l1" (or 2, inf, 1). In L2 the bound is that of the vector of logits (L2 to
    L2), otherwise of every logit. `norms` is how L2 norms of layers are bounded: "best", "tight" (exact padding in
    small layers, takes minutes), "all", or one method of norms/methods.py.

    `input_shape` has no batch axis: (3, 32, 32). Keywords replace `settings`. `mean` and `std` (per channel) put the
    normalisation (x - mean) / std in front. `device` defaults to the one the model is on. `domain` is the range of the
    entries of raw inputs, (0, 1) for pixels: products of activations, attention and the like have a bound only there,
    and without it they are refused; `NetworkBound.domain` says whether the bound needs it. For an ART classifier it is
    its `clip_values`. `global_method` says how layers are put together: "product" multiplies their bounds, "ellipsoid"
    takes several layers with their activations at once (raises `UnsupportedOp` where it cannot), "best" takes the
    smaller bound, of the network and of each pair of classes.
    Raises `CaptureError`, `UnsupportedOp` or `NotLipschitz`, each naming the layer.
    """
    settings = settings_from(keywords, settings, "bound", takes=BOUNDING, was={"method": ("norms", {})})
    measured = settings.only_norm
    network, _ = network_of(model, settings)
    shape, domain = tuple(input_shape), network.domain
    composition = compose(network.module, shape, domain=domain, progress=progress, **settings.bounding)
    return bound_in(composition, measured)


@_written_out(*CERTIFYING)
def certify(
    model: nn.Module | Any,
    inputs: torch.Tensor | np.ndarray | DataLoader[Any] | Dataset[Any],
    labels: torch.Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    settings: Settings = BEST,
    progress: Progress | None = None,
    **keywords: Any,
) -> Certificates:
    """Certified radii of `inputs` (n, ...), in their own units; with a DataLoader or Dataset, of its images.

    No input closer to row k than `radius[k]` changes its prediction (its label, where labels are given: the radius
    of a misclassified sample is 0). With a `domain`, the range of the entries of raw inputs, (0, 1) for pixels, this is
    said of inputs in the domain only; networks with products of activations, attention and the like need one. For an
    ART classifier it is its `clip_values`, the units of which are those of the radii.
    `norm` is that of the radii: "l2", "linf" (how far every entry may move) or "l1" (how far all may move in sum).
    Keywords replace `settings`; `mean`, `std`, `device`, `domain` and `norms` are those of `bound`.
    `local`: radii come from Lipschitz bounds ("off"); "on" adds those from affine forms around each sample, which may
    take minutes each, and takes the larger; "auto" does so as far as a minute allows, of at most `local_samples`;
    "thorough" goes on where "on" ends and takes all neurons together, which reaches farther in small ReLU networks and
    takes many times longer.
    `arithmetic`: what is certified is the exact function of the weights ("real"), the network as executed in its own
    dtype ("native") or in float64 ("float64"), see `lipaudit.certification.executed`; where that cannot be proved every
    radius is 0 and `.why_not` says why.
    Raises the errors of `lipaudit.bound`, and `BadThreat` for unfit inputs. Warns of pixels from 0 to 255 without a
    `domain`: most networks take them from 0 to 1.
    """
    settings = settings_from(keywords, settings, "certify", takes=CERTIFYING, was={"method": ("local", METHODS)})
    measured = settings.only_norm
    network, _ = network_of(model, settings)
    images, truth = with_labels(inputs, labels)
    points = check_inputs(images)
    domain, shape = network.domain, tuple(points.shape[1:])
    if domain is None and (doubt := doubt_of(points)):
        warnings.warn(doubt, stacklevel=2)
    if domain is not None and not bool(((points >= domain[0]) & (points <= domain[1])).all()):
        reached = f"{float(points.min()):g} to {float(points.max()):g}"
        raise BadThreat(f"expected inputs in the domain [{domain[0]:g}, {domain[1]:g}], got entries from {reached}")
    composition = compose(network.module, shape, domain=domain, progress=progress, **settings.bounding)
    answers = None if truth is None else check_labels(truth, len(points), len(composition.network.pairwise))
    asked = () if settings.arithmetic == "real" else (settings.arithmetic,)
    found = certify_with(composition, points, answers, norm=measured, arithmetics=asked, progress=progress)
    found, local = as_asked(found, composition, points, settings, progress=progress)
    if local is None or settings.local == "auto" or not local.why_not:
        return found
    return replace(found, why_not=found.why_not or f"local radii, {local.tried} tried: {local.why_not}")


@_written_out()
def audit(
    model: nn.Module | Any,
    inputs: torch.Tensor | np.ndarray | DataLoader[Any] | Dataset[Any],
    labels: torch.Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    settings: Settings | None = None,
    source: Source | None = None,
    progress: Progress | None = None,
    journal: str | Path | None = None,
    **keywords: Any,
) -> Audit:
    """Audit a classifier on labelled inputs: bounds, certificates, attacks, verdict.

    `model` is an nn.Module in eval mode, an ART `PyTorchClassifier` or a model name; `inputs` (n, ...) are raw, with
    entries in `domain`: [0, 1], or the `clip_values` of an ART classifier. `labels` are integers or one-hot rows; a
    DataLoader or Dataset of pairs as `inputs` brings its own.

    Keywords replace `settings`, and are those of `lipaudit.settings.Settings`. Changes are measured in `norm`: "l2",
    "linf" or "l1", or several, such as ("linf", "l2"), which share one run: the fields of the result are about the
    first, and `Audit.in_norm` gives those of another. Radii, distances and `eps`, the budgets ("36/255" or numbers;
    with several norms "linf:8/255", or by norm), are in units of the inputs. `attacks` is a preset ("standard" unless
    said otherwise) or a list of names, "none" for none. `norms` and `arithmetic` are those of `certify`; here
    certificates in all three arithmetics are found (`Audit.arithmetics`), and `arithmetic` says which of them the
    radii, rates and gates of the result are about. `local` radii are looked for around as many images as a minute
    allows ("auto"), around all ("on"), around all with all neurons taken together at last, for many times as long
    ("thorough"), or not at all ("off"); of at most `local_samples` images. `shard` (3, 8) audits the third of eight
    parts of the samples; `lipaudit.merge` makes one audit of all of them. `smoothing`, the sigma of randomized
    smoothing in units of the inputs, and `clever` add estimates, which no certificate rests on. `gates` are conditions
    such as "certified_accuracy@36/255>=0.30" (see `lipaudit.verdict.gates`), judged at the end.

    `journal` is a folder that keeps what is finished, batch by batch: the same call with the same folder goes on where
    an interrupted one was, whatever ended it, and finds the same. It is the caller's to delete. `source` says where
    network and images come from; its fields may also be given as keywords.
    Raises `BadThreat` for inputs or budgets that make no sense, `ConfigError` for a setting or gate that is none,
    `ResumeError` for the journal of another audit, and the errors of `bound`.
    """
    settings, source = given(keywords, settings, source)
    refuse_unmeasured(conditions(settings.gates), settings.measured)  # a wrong gate is told before any work
    network, facts = network_of(model, settings)
    source = source if source.model_facts else replace(source, model_facts=facts)
    return audit_network(network, inputs, labels, settings, source, progress=progress, journal=journal)


def given(
    keywords: Mapping[str, Any], settings: Settings | None, source: Source | None, function: str = "audit"
) -> tuple[Settings, Source]:
    """Settings and source with what keywords of `audit` replace in them."""
    of_source = {one.name for one in fields(Source)}
    facts = {name: value for name, value in keywords.items() if name in of_source and value is not None}
    rest = {name: value for name, value in keywords.items() if name not in of_source}
    return settings_from(rest, settings or Settings(), function, depth=4), replace(source or Source(), **facts)


def network_of(model: Any, settings: Settings) -> tuple[Prepared, ModelFacts | None]:
    """What is audited, and what the loader knows of it where `model` is a name.

    Raises `LoadError` for an unknown name, and the errors of `prepared`.
    """
    mean, std = settings.mean, settings.std
    if not isinstance(model, str) or (mean is None) != (std is None):
        return prepared(model, settings), None
    loaded = load_model(model, dataset=PAIRS.get(canonical(model)), mean=mean, std=std)
    return prepared(loaded.module, replace(settings, mean=None, std=None)), loaded.facts
