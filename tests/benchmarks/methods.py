"""What `layer_norms.py` compares: the layers of a network, the truth, what others publish, and ours.

A method is a function from a layer to a number, in the table `METHODS`; the first line of its docstring says what the
number is, and is printed. Those of other packages stand there whether they are installed or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import torch
import torchvision
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional

import lipaudit
from lipaudit.loading.models import load_model
from lipaudit.norms.methods import CONV_METHODS

GRAM_STEPS = 7
PART_BYTES = {"cpu": 2**21, "cuda": 2**30}
POWER_STEPS = 100
ORTHOGONIUM_STEPS = 3
"""What orthogonium's own tests take for zero padding."""
LANCZOS_VECTORS = 30
LANCZOS_TOLERANCE = 1e-8

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Layer:
    """A zero-padded 2-D convolution as it runs in a network; `size` is that of its input."""

    name: str
    weight: torch.Tensor
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    size: Pair

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, self.weight.shape[1] * self.groups, *self.size)

    def to(self, target: torch.dtype | torch.device) -> Layer:
        return replace(self, weight=self.weight.to(target))

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        axes = zip(self.size, y.shape[2:], self.stride, self.padding, self.dilation, self.weight.shape[2:], strict=True)
        unread = [n + 2 * p - d * (k - 1) - 1 - s * (m - 1) for n, m, s, p, d, k in axes]
        return functional.conv_transpose2d(
            y, self.weight, None, self.stride, self.padding, unread, self.groups, self.dilation
        )


def small_layer() -> Layer:
    """For warming up."""
    weight = torch.randn(8, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    return Layer("warm-up", weight, (1, 1), (1, 1), (1, 1), 1, (8, 8))


def layers_of(network: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    """The convolutions that one image of that shape meets, in that order. Raises `ValueError` for other paddings."""
    found: list[Layer] = []

    def note(name: str) -> Callable[[nn.Conv2d, tuple[torch.Tensor, ...]], None]:
        def hook(conv: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
            if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
                raise ValueError(f"expected zero padding in numbers, got {conv.padding_mode} {conv.padding} at {name}")
            weight, size = conv.weight.detach(), tuple(inputs[0].shape[2:])
            found.append(Layer(name, weight, conv.stride, conv.padding, conv.dilation, conv.groups, size))

        return hook

    convs = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    handles = [module.register_forward_pre_hook(note(name)) for name, module in convs]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return found


def resnet18_224() -> list[Layer]:
    """torchvision's ResNet-18 at 224, random weights of seed 0."""
    torch.manual_seed(0)
    return layers_of(torchvision.models.resnet18(weights=None), (3, 224, 224))


def resnet18_cifar() -> list[Layer]:
    """The trained ResNet-18 for CIFAR-10 that ships with pyautoattack, at 32."""
    return layers_of(load_model("resnet18", dataset="cifar10", offline=True).module, (3, 32, 32))


NETWORKS: dict[str, Callable[[], list[Layer]]] = {"resnet18-224": resnet18_224, "cifar": resnet18_cifar}


def truth(layer: Layer) -> float:
    """The largest singular value by Lanczos in float64: converged, and by its nature not above the truth."""
    exact, shape = layer.to(torch.float64), layer.input_shape

    def gram(v: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(v).to(exact.weight.device).reshape(shape)
        return exact.adjoint(exact.apply(x)).reshape(-1).cpu().numpy()

    side = math.prod(shape)
    if side <= LANCZOS_VECTORS:
        return float(np.linalg.eigvalsh(np.stack([gram(e) for e in np.eye(side)]))[-1]) ** 0.5
    start = np.random.default_rng(0).standard_normal(side)
    operator = LinearOperator((side, side), matvec=gram, dtype=np.float64)
    settings = {"ncv": LANCZOS_VECTORS, "tol": LANCZOS_TOLERANCE, "v0": start, "return_eigenvectors": False}
    return float(eigsh(operator, k=1, **settings)[0]) ** 0.5


def half_spectrum(layer: Layer) -> torch.Tensor:
    """The symbol of the circular map of stride 1 as (frequencies, out, in), of each conjugate pair one."""
    waves = torch.fft.rfft2(layer.weight, s=layer.size)
    return waves.permute(2, 3, 0, 1).flatten(0, 1).contiguous()


def gram_iteration(layer: Layer) -> float:
    """of the circular map of stride 1, rounding ignored

    The operations that its authors' programs consist of, one after the other: all frequencies in one batch, each step
    a norm of complex matrices, a complex division and a product with the conjugate transpose.
    Source: B. Delattre et al., ICML 2023, arXiv 2305.16173.
    """
    matrices = half_spectrum(layer)
    matrices = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    scale = torch.zeros(len(matrices), device=matrices.device)
    for _ in range(GRAM_STEPS):
        norm = matrices.norm(dim=(1, 2))
        matrices /= norm[:, None, None]
        matrices = torch.bmm(matrices.mH, matrices)
        scale = 2 * (scale + norm.log())
    return float(((scale + matrices.norm(dim=(1, 2)).log()) / 2**GRAM_STEPS).exp().max())


def tuned_gram_iteration(layer: Layer) -> float:
    """of the circular map of stride 1, rounding ignored

    The same with the fastest of torch's operations that do it: powers of a Hermitian matrix need no conjugate, norms
    are those of pairs of real numbers, and on a CPU the batch is worked off in parts that fit a cache.
    """
    symbol = half_spectrum(layer)
    symbol = symbol if symbol.shape[1] <= symbol.shape[2] else symbol.mH.resolve_conj()
    part = max(1, PART_BYTES[symbol.device.type] // symbol[0].nbytes)
    return float(torch.stack([gram_norms(matrices).max() for matrices in symbol.split(part)]).max())


def gram_norms(matrices: torch.Tensor) -> torch.Tensor:
    """About the spectral norm of each matrix, from above but for rounding."""
    scale = torch.zeros(len(matrices), device=matrices.device)
    for step in range(GRAM_STEPS):
        norm = frobenius(matrices)
        matrices = matrices * (1 / norm)[:, None, None]
        matrices = matrices @ (matrices if step else matrices.mH.resolve_conj())
        scale = 2 * (scale + norm.log())
    return ((scale + frobenius(matrices).log()) / 2**GRAM_STEPS).exp()


def frobenius(matrices: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(torch.view_as_real(matrices).flatten(1), dim=1)


def fft_svd(layer: Layer) -> float:
    """of the circular map of stride 1, rounding ignored

    Source: H. Sedghi, V. Gupta and P. Long, ICLR 2019, arXiv 1805.10408.
    """
    return float(torch.linalg.svdvals(half_spectrum(layer)).max())


def power_iteration(layer: Layer) -> float:
    """an estimate from below"""
    x = torch.randn(layer.input_shape, generator=torch.Generator().manual_seed(0)).to(layer.weight.device)
    for _ in range(POWER_STEPS):
        x = layer.adjoint(layer.apply(x / torch.linalg.vector_norm(x)))
    return float(torch.linalg.vector_norm(layer.apply(x / torch.linalg.vector_norm(x))))


def orthogonium(layer: Layer) -> float:
    """of the map of stride 1 and any size, rounding ignored

    Source: B. Delattre et al., 2024, arXiv 2402.00240.
    """
    from orthogonium.layers.conv.singular_values import get_conv_sv

    out, inputs, *kernel = layer.weight.shape
    settings = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups, "bias": False}
    with torch.device("meta"):  # the weights are put in afterwards
        conv = nn.Conv2d(inputs * layer.groups, out, kernel, dilation=layer.dilation, **settings)
    conv.weight = nn.Parameter(layer.weight, requires_grad=False)
    return float(get_conv_sv(conv, ORTHOGONIUM_STEPS, return_stab_rank=False))


def torchlip(layer: Layer) -> float:
    """an estimate for any size, from that of the flattened kernel

    It is what its SpectralConv2d divides a kernel by, so that the convolution has norm 1. The power iteration starts at
    random.
    """
    from deel.torchlip import normalizers
    from deel.torchlip.utils.lconv_norm import compute_lconv_coef

    torch.manual_seed(0)
    _, _, norm = normalizers.spectral_normalization(layer.weight.flatten(1))
    overlap = compute_lconv_coef(tuple(layer.weight.shape[2:]), None, layer.stride)
    return float(norm + normalizers.DEFAULT_EPS_SPECTRAL) / float(overlap)


def ours(method: str) -> Callable[[Layer], float]:
    """lipaudit's bound by this method, with the layer's own padding, stride and size."""

    def bound(layer: Layer) -> float:
        """proved, rounding included"""
        settings = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        settings |= {"groups": layer.groups, "method": method}
        return lipaudit.conv_norm(layer.weight, input_size=layer.size, **settings).value

    return bound


PLAIN = f"Gram iteration, {GRAM_STEPS} steps"
METHODS: dict[str, Callable[[Layer], float]] = {
    PLAIN: gram_iteration,
    f"{PLAIN}, tuned by us": tuned_gram_iteration,
    "FFT and SVD": fft_svd,
    f"power iteration, {POWER_STEPS} steps": power_iteration,
    "orthogonium": orthogonium,
    "deel-torchlip": torchlip,
    "lipaudit": ours("best"),
    **{f"lipaudit, {name}": ours(name) for name in ("torus", "tight") if name in CONV_METHODS},
}
PACKAGES = ("orthogonium", "deel-torchlip")


def installed(method: str) -> bool:
    """Whether the package that the method is of is there."""
    try:
        return method not in PACKAGES or bool(distribution(method))
    except PackageNotFoundError:
        return False
