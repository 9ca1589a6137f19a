# %% [markdown]
# # How a false certificate is found
#
# A network is certified by a formula that one finds in published code: the margin over the product of the norms of its
# flattened kernels. An attack then changes the answer inside the certified radius, and no larger test set is needed to
# know that the formula is wrong.

# %%
import math

import torch
from torch import Tensor, nn

import lipaudit
from lipaudit import zoo

torch.manual_seed(0)
x, y, x_test, y_test = (torch.from_numpy(part) for part in zoo.digits_split())
model = nn.Sequential(
    nn.Conv2d(1, 8, 5, padding=2),
    nn.ReLU(),
    nn.Conv2d(8, 8, 5, padding=2),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(512, 10),
)
optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(150):
    picked = torch.randint(len(x), (64,))
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(x[picked]), y[picked]).backward()
    optimiser.step()
model.eval()


# %%
def flattened(weight: Tensor) -> float:
    """What many call the spectral norm of a convolution."""
    return float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2))


images, labels = x_test[:40], y_test[:40]
claimed = math.prod(flattened(layer.weight) for layer in model if hasattr(layer, "weight"))
with torch.no_grad():
    best = model(images).topk(2).values
false_radii = (best[:, 0] - best[:, 1]) / (math.sqrt(2) * claimed)

# %% [markdown]
# The audit takes the claim, attacks, and proves radii of its own.

# %%
audit = lipaudit.audit(model, images, labels, claimed_lipschitz=claimed, attacks="fab-t-quick", local="off")
print(f"claimed {claimed:.2f}, proved {audit.bound.value:.2f}, steepest slope {audit.claim.slope:.2f}")
broken = inside = 0
for false, proved, distance in zip(false_radii.tolist(), audit.samples.radius, audit.samples.distance, strict=True):
    if distance is not None:
        broken += 1
        inside += distance < false
        assert distance > proved
print(f"of {broken} broken images {inside} were broken inside the radius of the formula, none inside that of lipaudit")
print(f"the claim is {audit.claim.standing(audit.bound)}")
