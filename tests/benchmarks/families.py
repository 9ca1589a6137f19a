"""How long `lipaudit.bound` takes with its default settings: a small model from each of 24 families, one at a time.

    python tests/benchmarks/families.py
    python tests/benchmarks/families.py timm:convnext_zepto_rms torchvision:swin_t
    python tests/benchmarks/families.py --all --markdown > table.md   # every family of both libraries

Each model is built with random weights, without network access, and bounded for pixels in [0, 1] in a process of its
own with two threads. Printed are the bound, the processor seconds of `bound` alone, those on the wall clock, and the
largest part of memory; a model that is refused is named with its reason. The exit code is 1 if any took more than
`--limit` seconds by both clocks (on a machine that others use the wall clock says nothing), ended in anything but a
bound or a refusal, or, of the 24, was refused.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings

import torch

import lipaudit
from lipaudit.errors import LipauditError
from lipaudit.runs.survey import DOMAIN, Choice, build, choices

FAMILIES = [
    "timm:resnet10t",
    "timm:regnetx_002",
    "timm:densenet121",
    "timm:ese_vovnet19b_slim_dw",
    "timm:mobilenetv2_035",
    "timm:mobilenetv3_small_050",
    "timm:ghostnet_050",
    "timm:convnext_zepto_rms",
    "timm:convmixer_768_32",
    "timm:gmlp_ti16_224",
    "timm:poolformerv2_s12",
    "timm:vit_tiny_patch16_224",
    "timm:deit_tiny_patch16_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:levit_128s",
    "timm:repvit_m1",
    "timm:edgenext_xx_small",
    "timm:mobilevit_xxs",
    "torchvision:googlenet",
    "torchvision:efficientnet_b0",
    "torchvision:mnasnet0_5",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_0",
    "torchvision:vgg11_bn",
]
THREADS = 2
GRACE = 10
"""Wall seconds for each processor second that a model may take: others may use the machine as well."""


def measured(name: str) -> dict[str, object]:
    """One row, in this process."""
    torch.set_num_threads(THREADS)
    library, _, model = name.partition(":")
    module, shape = build(Choice(library, "", model))  # type: ignore[arg-type]
    row: dict[str, object] = {"model": name, "shape": shape, "log10": None, "outcome": "bounded", "reason": ""}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        row["log10"] = lipaudit.bound(module, shape, domain=DOMAIN).log10
    except LipauditError as error:
        row |= {"outcome": "refused", "reason": str(error)}
    row |= {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    return row | {"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def apart(name: str, limit: float) -> dict[str, object]:
    """One row, from a process of its own."""
    row: dict[str, object] = {"model": name, "outcome": "failed", "log10": None, "cpu": None, "wall": None, "gib": None}
    alone = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--one", name]
    try:
        done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=GRACE * limit, check=False)
    except subprocess.TimeoutExpired:
        return row | {"reason": f"no answer in {GRACE * limit:.0f} s on the wall clock"}
    lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    found = next((line for line in lines if line.startswith("{")), None)
    return json.loads(found) if found else row | {"reason": lines[-1] if lines else f"exit code {done.returncode}"}


def shown(row: dict[str, object]) -> list[str]:
    """The cells of a row."""
    numbers = [row["log10"], row["cpu"], row["wall"], row["gib"]]
    return [str(row["model"]), *("-" if n is None else f"{n:.1f}" for n in numbers), str(row.get("reason", ""))]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="LIBRARY:MODEL", help="the 24 by default")
    parser.add_argument("--all", action="store_true", help="a small model of every family of timm and torchvision")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that each may take (60)")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # of the libraries, about initialisation
    if asked.one:
        sys.stdout.write(json.dumps(measured(asked.one)) + "\n")
        return 0
    everything = [f"{choice.library}:{choice.model}" for choice in choices()] if asked.all else FAMILIES
    head = ["model", "log10 of the bound", "processor seconds", "wall seconds", "GiB", "refused because"]
    between, bad = (" | " if asked.markdown else "  "), 0
    sys.stdout.write(between.join(head) + "\n" + (between.join("---" for _ in head) + "\n") * asked.markdown)
    for name in asked.models or everything:
        row = apart(name, asked.limit)
        slow = row["cpu"] is None or min(row["cpu"], row["wall"]) > asked.limit  # type: ignore[type-var]
        bad += slow or (row["outcome"] == "refused" and name in FAMILIES)
        sys.stdout.write(between.join(shown(row)) + "\n")
        sys.stdout.flush()
    sys.stdout.write(f"\n{bad} of {len(asked.models or everything)} over {asked.limit:g} seconds or failed\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
