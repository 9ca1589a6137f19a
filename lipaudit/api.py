"""The public functions. The only place that turns the name of a model into a network."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lipaudit.certification.certificates import Certificates, certify_with, under, with_local_radii
from lipaudit.certification.executed import Promise
from lipaudit.certification.inputs import check_inputs, check_labels, doubt_of
from lipaudit.certification.local_search import BUDGET
from lipaudit.certification.network_bound import GlobalMethod, compose
from lipaudit.errors import BadThreat
from lipaudit.graph.wrappers import as_module, domain_of, on_device
from lipaudit.loading.model_names import PAIRS, canonical
from lipaudit.loading.models import load_model
from lipaudit.loading.user_data import with_labels
from lipaudit.progress import Progress
from lipaudit.results.audit import Audit
from lipaudit.results.bounds import NetworkBound
from lipaudit.runs.audit import audit as audit_network


def bound(
    model: nn.Module | Any,
    input_shape: tuple[int, ...],
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str | torch.device | None = None,
    domain: tuple[float, float] | None = None,
    method: str = "best",
    global_method: GlobalMethod = "best",
    progress: Progress | None = None,
) -> NetworkBound:
    """A proved bound of the Lipschitz constant (L2 to L2) of `model`, from raw inputs to logits.

    `input_shape` has no batch axis: (3, 32, 32). `mean` and `std` (per channel) put the normalisation
    (x - mean) / std in front. `device` defaults to the one the model is on. `domain` is the range of the entries of
    raw inputs, (0, 1) for pixels: products of activations, attention and the like have a bound only there, and
    without it they are refused; `NetworkBound.domain` says whether the bound needs it. For an ART classifier it is its
    `clip_values`.
    `global_method` says how layers are put together: "product" multiplies their bounds, "ellipsoid" takes several
    layers with their activations together (raises `UnsupportedOp` where it cannot), "best" takes the smaller bound, of
    the network and of each pair of classes.
    Raises `CaptureError`, `UnsupportedOp` or `NotLipschitz`, each naming the layer.
    """
    model, given = network_of(model, {"mean": mean, "std": std})
    module = on_device(as_module(model, mean=given["mean"], std=given["std"]), device)
    domain = domain_of(model, domain)
    shape = tuple(input_shape)
    return compose(module, shape, domain=domain, method=method, progress=progress, global_method=global_method).network


def certify(
    model: nn.Module | Any,
    inputs: torch.Tensor | np.ndarray | DataLoader[Any] | Dataset[Any],
    labels: torch.Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    method: Literal["best", "global", "local", "thorough"] = "best",
    norms: str = "best",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str | torch.device | None = None,
    domain: tuple[float, float] | None = None,
    promise: Promise = "R",
    progress: Progress | None = None,
) -> Certificates:
    """Certified L2 radii of `inputs` (n, ...), in their own units; with a DataLoader or Dataset, of its images.

    No input closer to row k than `radius[k]` changes its prediction (its label, where labels are given: the radius
    of a misclassified sample is 0). With a `domain`, the range of the entries of raw inputs, (0, 1) for pixels, this is
    said of inputs in the domain only; networks with products of activations, attention and the like need one. For an
    ART classifier it is its `clip_values`, the units of which are those of the radii.
    `method`: "global" radii come from Lipschitz bounds (layer norms by `norms`); "local" adds those from affine forms
    around each sample, which may take minutes each, and takes the larger; "best" does so as far as a minute allows;
    "thorough" goes on where "local" ends and takes all neurons together, which reaches farther in small ReLU networks
    and takes many times longer.
    `promise`: what is certified is the exact function of the weights ("R"), the network as executed in its own dtype
    ("F") or in float64 ("D"), see `lipaudit.certification.executed`; where that cannot be proved every radius is 0 and
    `.why_not` says why.
    Raises the errors of `lipaudit.bound`, and `BadThreat` for unfit inputs. Warns of pixels from 0 to 255 without a
    `domain`: most networks take them from 0 to 1.
    """
    model, given = network_of(model, {"mean": mean, "std": std})
    module = on_device(as_module(model, mean=given["mean"], std=given["std"]), device)
    domain = domain_of(model, domain)
    inputs, labels = with_labels(inputs, labels)
    points = check_inputs(inputs)
    if domain is None and (doubt := doubt_of(points)):
        warnings.warn(doubt, stacklevel=2)
    if domain is not None and not bool(((points >= domain[0]) & (points <= domain[1])).all()):
        reached = f"{float(points.min()):g} to {float(points.max()):g}"
        raise BadThreat(f"expected inputs in the domain [{domain[0]:g}, {domain[1]:g}], got entries from {reached}")
    composition = compose(module, tuple(points.shape[1:]), domain=domain, method=norms, progress=progress)
    answers = None if labels is None else check_labels(labels, len(points), len(composition.network.pairwise))
    asked = () if promise == "R" else (promise,)
    found = certify_with(composition, points, answers, promises=asked, progress=progress)
    if method == "global":
        return under(found, promise)
    budget, together = BUDGET if method == "best" else None, method == "thorough"
    found, local = with_local_radii(found, composition, points, budget=budget, together=together, progress=progress)
    found = under(found, promise)
    if method == "best" or not local.why_not:
        return found
    return replace(found, why_not=found.why_not or f"local radii, {local.tried} tried: {local.why_not}")


@functools.wraps(audit_network)
def audit(model: nn.Module | Any, inputs: Any, labels: Any = None, **settings: Any) -> Audit:
    model, settings = network_of(model, settings)
    return audit_network(model, inputs, labels, **settings)


def network_of(model: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The network that a name stands for, with its weights, and what is left of the settings; others stay as they are.

    Mean and std are in front of it then; the facts about it are those that the loader knows. Raises `LoadError` for an
    unknown name.
    """
    mean, std = settings.get("mean"), settings.get("std")
    if not isinstance(model, str) or (mean is None) != (std is None):
        return model, settings
    loaded = load_model(model, dataset=PAIRS.get(canonical(model)), mean=mean, std=std)
    return loaded.module, {"model_facts": loaded.facts, **settings, "mean": None, "std": None}
