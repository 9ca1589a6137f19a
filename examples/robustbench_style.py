# %% [markdown]
# # A model in the style of RobustBench
#
# Models of RobustBench take pixels from 0 to 1 and have their normalisation inside. Nothing else is needed: the bound
# begins at the pixels. The result is written in the form of RobustBench's `model_info`.

# %%
import json

import torch
from torch import Tensor, nn

import lipaudit
from lipaudit import zoo
from lipaudit.results.leaderboards import to_robustbench


class NormalisedModel(nn.Module):
    """A network with its normalisation inside, as `robustbench.utils.load_model` returns it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


_, _, x, y = (torch.from_numpy(part) for part in zoo.digits_split())
model = NormalisedModel(zoo.load("digits-cnn"), mean=(0.0,), std=(1.0,)).eval()

# %% [markdown]
# With RobustBench installed, the two lines above would be `load_cifar10(n_examples=100)` and
# `load_model("Rony2019Decoupling", dataset="cifar10", threat_model="L2")`. AutoAttack's standard version is
# `attacks="autoattack"`; here a quick one is enough to show the form.

# %%
audit = lipaudit.audit(model, x[:20], y[:20], eps="0.5", attacks="quick", local="off")
info = json.loads(to_robustbench(audit))
print(json.dumps({name: info[name] for name in ("clean_acc", "autoattack_acc", "certified_acc", "eps")}, indent=1))
assert info["autoattack_acc"] is None  # filled only by AutoAttack's standard version
assert float(info["certified_acc"]) <= float(info["clean_acc"])
