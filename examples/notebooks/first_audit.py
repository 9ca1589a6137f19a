# %% [markdown]
# # What an audit says
#
# The bundled certified network on 60 digits, under quick attacks. What is proved and what is found stand side by side.

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import lipaudit
from lipaudit import zoo
from lipaudit.errors import ReportError

_, _, x, y = (torch.from_numpy(part[:60]) for part in zoo.digits_split())
audit = lipaudit.audit("digits-aol", x, y, attacks="quick", local="off")
print(audit)

# %% [markdown]
# At each budget every image is in one of four parts: proved, unknown, broken, misclassified.

# %%
for proved, unbroken in zip(audit.certified, audit.empirical, strict=True):
    unknown = unbroken.count - proved.count
    broken = audit.clean.count - unbroken.count
    print(f"eps {proved.eps:>6}: {proved.count} proved, {unknown} unknown, {broken} broken")

# %% [markdown]
# The images themselves: the certified radius is never above the closest change that an attack found.

# %%
rows = zip(audit.samples.index, audit.samples.radius, audit.samples.distance, strict=True)
for index, radius, distance in sorted(rows, key=lambda row: row[1])[:5]:
    found = "never broken" if distance is None else f"broken at {distance:.3f}"
    print(f"image {index:3}: certified to {radius:.3f}, {found}")
    assert distance is None or distance > radius

# %% [markdown]
# A result is a file. It is compared with its own rows when it is read, so a number that somebody changed is named.

# %%
better = replace(audit.certified[0], count=60, value=1.0, low=0.9, high=1.0)
forged = replace(audit, certified=(better, *audit.certified[1:]))
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "result.json"
    file.write_text(audit.to_json(), encoding="utf-8")
    assert lipaudit.load_audit(file).certified == audit.certified
    file.write_text(forged.to_json(), encoding="utf-8")
    try:
        lipaudit.load_audit(file)
    except ReportError as error:
        print(str(error).partition(": ")[2])
    else:
        raise AssertionError("a forged result was read")
