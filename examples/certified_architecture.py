# %% [markdown]
# # A certified architecture at its true constant
#
# A network of layers that are 1-Lipschitz by construction is trained on the digits for a few seconds. The audit reads
# the constant that its layers claim, and proves it. Then a layer whose claim is false: two inputs refute it.

# %%
import base64

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import lipaudit
from lipaudit import zoo
from lipaudit.nn import AOLLinear, ChannelPad, MaxMin, OrthogonalConv2d, PotentialConv2d, SpaceToDepth

torch.manual_seed(0)
x, y, x_test, y_test = (torch.from_numpy(part) for part in zoo.digits_split())
model = nn.Sequential(
    SpaceToDepth(2),
    ChannelPad(16),
    OrthogonalConv2d(16, 16, 3),
    MaxMin(),
    PotentialConv2d(16),
    nn.Flatten(),
    AOLLinear(256, 10),
)

# %% [markdown]
# Logits of a 1-Lipschitz network are small, so the loss gets them times a temperature.

# %%
optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(40):
    picked = torch.randint(len(x), (128,))
    optimiser.zero_grad()
    nn.functional.cross_entropy(16 * model(x[picked]), y[picked]).backward()
    optimiser.step()

audit = lipaudit.audit(model.eval(), x_test[:50], y_test[:50], attacks="none", local="off")
claim = audit.claim
print(f"{claim.source} claim {claim.constant:g}; the bound is {audit.bound.value:.7f}: {claim.standing(audit.bound)}")
print(f"clean accuracy {audit.clean_accuracy:.0%}, certified at 36/255: {audit.certified_accuracy('36/255'):.0%}")
assert claim.standing(audit.bound) == "confirmed"

# %% [markdown]
# `spectral_norm` divides a convolution by the norm of its flattened kernel. Who takes that for the norm of the
# convolution claims a constant that is too small.

# %%
convolution = nn.Conv2d(1, 8, 3, padding=1)
with torch.no_grad():
    convolution.weight.abs_()  # filters that blur
claimed = nn.Sequential(spectral_norm(convolution, n_power_iterations=100), nn.Flatten()).eval()
labels = claimed(x_test[:20]).argmax(1)  # of 512 "classes": this is about the constant only
audit = lipaudit.audit(claimed, x_test[:20], labels, claimed_lipschitz=1, attacks="none", local="off")
print(next(found.value for found in audit.findings if found.id == "LA106"))
assert audit.claim.standing(audit.bound) == "refuted"

# %% [markdown]
# The result file holds both inputs. Whoever doubts it evaluates the network there, and needs no lipaudit for it.

# %%
one, two = (
    torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").reshape(1, 1, 8, 8).copy())
    for text in audit.claim.steepest.inputs
)
with torch.no_grad():
    slope = (claimed(one) - claimed(two)).norm() / (one - two).norm()
print(f"the logits move {slope:.2f} times as far as the inputs, and the claim was 1")
assert slope > 1
