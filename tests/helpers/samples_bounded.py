"""Small networks for the rules that need the range of their operands: products, attention, normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Function = Callable[[torch.Tensor], torch.Tensor]
Make = Callable[..., nn.Module]
"""`samples.Net`: a function of the input, its shape, its parts; a dense layer to four logits follows."""

F = functional
IMAGE = (2, 6, 6)
TOKENS = (5, 6)


def spread_out(net: Make, function: Function) -> nn.Module:
    """The function behind a dense layer."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 12)
    return net(lambda x: function(layer(x) * 2), (6,), layer)


def normalised(net: Make, layer: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return net(lambda x: layer(x), shape, layer)


def running_instance_norm(net: Make) -> nn.Module:
    layer = nn.InstanceNorm2d(2, affine=True, track_running_stats=True)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.05, 2)
    return normalised(net, layer, IMAGE)


def attended(net: Make, attend: Callable[..., torch.Tensor], scale: float = 1.0) -> nn.Module:
    """Queries, keys and values of two heads with three entries each, from five tokens."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 18)
    layer.weight.data *= scale

    def function(x: torch.Tensor) -> torch.Tensor:
        query, key, value = layer(x).reshape(len(x), 5, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return attend(query, key, value)

    return net(function, TOKENS, layer)


def every_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """All signatures in one: plain, causal and scaled, constant and dependent masks, grouped heads."""
    attend = F.scaled_dot_product_attention
    bias = torch.linspace(-2, 2, 25).reshape(5, 5).to(query)
    constant = torch.ones_like(query[:1]).expand(len(query), -1, -1, -1)
    visible = torch.eye(5, dtype=torch.bool) | (bias > 0)
    outputs = [
        attend(query, key, value),
        attend(query, key, value, is_causal=True, scale=0.9),
        attend(query, key, value, attn_mask=bias),
        attend(query, key, value, attn_mask=visible),
        attend(query, key, value, attn_mask=query @ value.transpose(-1, -2)),
        attend(query, key, value, attn_mask=query[:, :1, :1] @ key[:, :1].transpose(-1, -2)),
        attend(constant, key, value),
        attend(query, constant, value),
        attend(query, key, constant),
        attend(query, key[:, :1], value[:, :1], enable_gqa=True),
    ]
    return torch.cat(outputs, -1)


def recurrent(net: Make) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.LSTM(6, 3, num_layers=2, bidirectional=True, batch_first=True)
    return net(lambda x: layer(x)[0], (4, 6), layer)


def networks(net: Make) -> dict[str, Callable[[], nn.Module]]:
    """Operation -> a network that contains it; `net` is `samples.Net`."""

    def image(function: Function) -> Callable[[], nn.Module]:
        return lambda: net(function, IMAGE)

    return {
        "pow.Tensor_Scalar": image(lambda x: x**2 + (x - 0.5) ** 3 + (x + 0.2) ** -1.5),
        "pow.Tensor_Tensor": image(lambda x: (x + 0.1) ** torch.tensor([2.5])),
        "square.default": lambda: spread_out(net, torch.square),
        "sqrt.default": image(lambda x: torch.sqrt(x + 0.01)),
        "rsqrt.default": image(lambda x: torch.rsqrt(x + 0.1)),
        "reciprocal.default": image(lambda x: torch.reciprocal(-x - 0.1)),
        "exp.default": lambda: spread_out(net, torch.exp),
        "log.default": image(lambda x: torch.log(x + 0.2)),
        "log1p.default": image(lambda x: torch.log1p(x - 0.8)),
        "log2.default": image(lambda x: torch.log2(x + 0.2)),
        "log10.default": image(lambda x: torch.log10(x + 0.2)),
        "logit.default": image(lambda x: torch.logit(0.8 * x + 0.1) + torch.logit(2 * x - 0.5, 0.05)),
        "expm1.default": lambda: spread_out(net, torch.expm1),
        "exp2.default": lambda: spread_out(net, torch.exp2),
        "atan2.default": image(
            lambda x: torch.atan2(x - 0.5, x.flip(1) + 0.1) + torch.atan2(x + 0.1, torch.tensor(-0.2))
        ),
        "glu.default": image(lambda x: F.glu(x * 3, 1)),
        "var.dim": image(lambda x: x.var((2, 3), keepdim=True)),
        "var.correction": image(lambda x: x.var(dim=(1, 2), correction=0)),
        "std.dim": image(lambda x: x.std(1)),
        "std.correction": image(lambda x: x.std(dim=(2, 3), correction=0)),
        "softmax.int": lambda: spread_out(net, lambda x: torch.softmax(x, 1)),
        "log_softmax.int": lambda: spread_out(net, lambda x: torch.log_softmax(x, 1)),
        "logsumexp.default": lambda: spread_out(net, lambda x: torch.logsumexp(x, 1, keepdim=True)),
        "layer_norm.default": lambda: normalised(net, nn.LayerNorm(6, eps=0.01), (4, 6)),
        "group_norm.default": lambda: normalised(net, nn.GroupNorm(2, 4, eps=0.01), (4, 3, 3)),
        "rms_norm.default": lambda: normalised(net, nn.RMSNorm(6, eps=0.001), (4, 6)),
        "instance_norm.default": lambda: normalised(net, nn.InstanceNorm2d(2, affine=True), IMAGE),
        "scaled_dot_product_attention.default": lambda: attended(net, every_attention),
        "lstm.input": lambda: recurrent(net),
    }
