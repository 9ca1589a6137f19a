# %% [markdown]
# # Fine-tune in Lightning's manner, audit, gate
#
# The bundled ordinary network is fine-tuned with a penalty on its own Lipschitz bound. A `LightningModule` has the
# loss, a hook logs what is certified after every epoch, and the audit at the end decides by gates, as a build would.
# Where Lightning is not installed, a loop of a few lines calls the same methods.

# %%
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lipaudit
from lipaudit import zoo
from lipaudit.integrations.training import CertificateLog
from lipaudit.nn import log_lipschitz

LIGHTNING = find_spec("lightning") is not None
if LIGHTNING:
    from lightning import LightningModule as Base
    from lightning import Trainer
else:
    Base = nn.Module

torch.manual_seed(0)
x, y, x_test, y_test = (torch.from_numpy(part) for part in zoo.digits_split())


class FineTuned(Base):
    """Cross entropy, and a penalty on the bound that the audit would find."""

    def __init__(self, network: nn.Module, weight: float) -> None:
        super().__init__()
        self.network, self.weight = network, weight
        self.finished = 0
        self.hook = CertificateLog(network, (x_test[:50], y_test[:50]), self.note, eps="36/255")

    def note(self, tag: str, value: float, step: int) -> None:
        if tag == "lipaudit/lipschitz_bound":
            print(f"epoch {step}: bound {value:.1f}")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: Any, *_: int) -> Tensor:
        images, labels = batch
        penalty = log_lipschitz(self.network, (1, 8, 8), method="gram", refresh=8)
        return nn.functional.cross_entropy(self(images), labels) + self.weight * penalty

    def on_train_epoch_end(self) -> None:
        self.finished += 1
        self.hook(self.finished)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=2e-3)


# %% [markdown]
# What `Trainer.fit` does with it, in short:


# %%
def fit(module: Any, batches: DataLoader[Any], epochs: int) -> None:
    optimiser = module.configure_optimizers()
    for _ in range(epochs):
        module.train()
        for batch in batches:
            optimiser.zero_grad()
            module.training_step(batch).backward()
            optimiser.step()
        module.on_train_epoch_end()


module = FineTuned(zoo.load("digits-cnn"), weight=0.5)
before = lipaudit.bound(module.network.eval(), (1, 8, 8)).value
batches = DataLoader(TensorDataset(x[:640], y[:640]), batch_size=64, shuffle=True)
if LIGHTNING:
    Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False).fit(module, batches)
else:
    print("Lightning is not installed: a plain loop calls the same methods")
    fit(module, batches, epochs=2)

# %% [markdown]
# The gates are conditions on the result. `audit.exit_code` is what `lipaudit run` would end with: 3 if a gate fails.

# %%
audit = lipaudit.audit(
    module.network.eval(),
    x_test[:50],
    y_test[:50],
    attacks="none",
    local="off",
    gates=("clean_accuracy>=90%", "certified_accuracy@0.01>=0.5", "certified_accuracy@0.5>=0.5"),
)
print(f"bound {before:.0f} before, {audit.bound.value:.0f} after")
for gate in audit.gates:
    print(gate.expression, gate.state, gate.value)
print("exit code", audit.exit_code)
assert audit.bound.value < before
assert audit.exit_code == 3  # 0.5 is too much for an ordinary network
