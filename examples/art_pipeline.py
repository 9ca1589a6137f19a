# %% [markdown]
# # An audit in an ART pipeline
#
# ART's classifier, with inputs from 0 to 16 and a standardisation of its own, is attacked by ART and audited by
# lipaudit. An attack can only find a smaller change than the certificates exclude if one of the two is wrong.

# %%
import numpy as np
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import nn

from lipaudit import zoo
from lipaudit.integrations.art import LipschitzAudit

_, _, x, y = zoo.digits_split()
x, y = 16 * x[:40], y[:40]  # as scikit-learn has them: 0 to 16
classifier = PyTorchClassifier(
    zoo.load("digits-aol"),
    loss=nn.CrossEntropyLoss(),
    input_shape=(1, 8, 8),
    nb_classes=10,
    clip_values=(0.0, 16.0),
    preprocessing=(0.0, 16.0),  # mean and standard deviation: the network takes 0 to 1
    device_type="cpu",
)

# %% [markdown]
# ART's own projected gradient descent, at a budget of 8 (half the range, in L2):

# %%
attack = ProjectedGradientDescent(classifier, norm=2, eps=8.0, eps_step=1.0, max_iter=20, verbose=False)
attacked = attack.generate(x, y)
right = classifier.predict(x).argmax(1) == y
kept = classifier.predict(attacked).argmax(1) == y
print(f"right: {right.mean():.0%}, and after the attack: {kept.mean():.0%}")

# %% [markdown]
# The audit is an evaluation of ART. Radii are in units of `clip_values`, with the standardisation in them.

# %%
audit = LipschitzAudit(eps=(2.0, 8.0), attacks="quick", local="off").evaluate(classifier, x, y)
print(audit.verdict.headline)
radii = np.array(audit.samples.radius)
distances = np.linalg.norm((attacked - x).reshape(len(x), -1).astype(np.float64), axis=1)
changed = right & ~kept
print(f"median certified radius {np.median(radii):.2f}, closest successful change {distances[changed].min():.2f}")
assert audit.verdict.integrity == "SOUND"
assert (distances[changed] > radii[changed]).all()
