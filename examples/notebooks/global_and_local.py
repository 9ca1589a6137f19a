# %% [markdown]
# # Global and local certificates
#
# The same ordinary network, bounded in three ways: layer by layer, several layers at once, and around one image.

# %%
import torch

import lipaudit
from lipaudit import zoo

_, _, x, y = (torch.from_numpy(part[:1]) for part in zoo.digits_split())
model = zoo.load("digits-cnn")
product = lipaudit.bound(model, (1, 8, 8), global_method="product")
together = lipaudit.bound(model, (1, 8, 8), global_method="best")
print(f"product of the layers {product.value:.0f}, several layers at once {together.value:.0f}")
assert together.value <= product.value

# %% [markdown]
# Where the product comes from, layer by layer:

# %%
for line in product.layers:
    if line.upper.value != 1:
        print(f"{line.name[:40]:40} {line.upper.value:8.3f}  {line.upper.method}")

# %% [markdown]
# Around one image only a part of the network is active, and much more can be proved. Attacks say where the truth ends.

# %%
local = lipaudit.certify(model, x, y, local="on")
audit = lipaudit.audit(model, x, y, attacks="fab-t-quick", local="off")
radii, distance = (audit.samples.radius[0], local.radius[0]), audit.samples.distance[0]
print(f"global radius {radii[0]:.4f}, local {radii[1]:.4f}, broken at {distance:.4f}")
assert radii[0] <= radii[1] < distance
