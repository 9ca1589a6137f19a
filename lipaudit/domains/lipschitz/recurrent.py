"""Long short-term memory: a bound by recursion over the time steps, independent of the range of its input.

Note [Recurrence]
    i, f, o = sigmoid and g = tanh of z_t = W x_t + U h_(t-1) + b;  c_t = f c_(t-1) + i g;  h_t = o tanh(c_t).
    |i|, |f|, |o|, |g| <= 1, so |c_t| <= |c_0| + t. The slopes are 1/4 for the sigmoid and 1 for tanh, hence
        ||dc_t|| <= ||dc_(t-1)|| + sqrt((|c_0| + t - 1)^2 / 16 + 1/16 + 1) ||dz_t||,
        ||dh_t|| <= ||dc_t|| + 1/4 ||dz_t||,        ||dz_t|| <= ||W|| ||dx_t|| + ||U|| ||dh_(t-1)||.
    Row by row this says how far each output of the sequence follows each input: a triangular matrix without negative
    entries, and the layer follows the sequence by at most its norm. Sequences of a batch are independent.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from lipaudit.domains.graph import Node
from lipaudit.domains.lipschitz.propagator import RULES, Ledger, Value
from lipaudit.domains.lipschitz.scaling import constant, dependent
from lipaudit.errors import NotLipschitz, UnsupportedOp
from lipaudit.norms.methods import dense_norm
from lipaudit.results.bounds import Upper
from lipaudit.rounding import up


@RULES.rule("lstm.input")
def lstm(
    node: Node,
    ledger: Ledger,
    input: Any,
    hx: Any,
    params: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Value:
    """An LSTM over a sequence: the norm of how far each output follows each input (Note [Recurrence])."""
    del dropout
    if train or node.output != 0:
        raise UnsupportedOp("expected the output sequence of an LSTM in eval mode, got its last state or train mode")
    source = dependent(input, "the sequence of an LSTM")
    if any(isinstance(x, Value) for x in [*hx, *params]):
        raise UnsupportedOp("expected weights and initial states of an LSTM that are constant, got others")
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    if each != (4 if has_biases else 2):
        raise UnsupportedOp(f"expected an LSTM without projection, got {each} weights per layer and direction")
    steps = ledger.shape_of(node, "input")[1 if batch_first else 0]
    bound = 1.0
    for layer in range(num_layers):
        follows = []
        for direction in range(layer * directions, (layer + 1) * directions):
            weights = [constant(w, "weights of an LSTM") for w in params[direction * each : direction * each + 2]]
            memory = float(constant(hx[1], "the memory of an LSTM")[direction].abs().max())
            into, again = (float(dense_norm(w)) for w in weights)
            follows.append(_follows(into, again, memory, steps))
        bound = up(bound * up(math.hypot(*follows)))
    if not math.isfinite(bound):
        raise NotLipschitz(f"expected a bound of the LSTM over {steps} steps within float64, got a larger one")
    return ledger.record(node, "scale", [source], Upper(bound, "recurrence", f"{num_layers} layers over {steps} steps"))


def _follows(into: float, again: float, memory: float, steps: int) -> float:
    """The norm of the matrix of Note [Recurrence], with `into` = ||W|| and `again` = ||U||."""
    state = torch.zeros(steps, dtype=torch.float64)
    output = torch.zeros(steps, dtype=torch.float64)
    rows = []
    for step in range(steps):
        gates = again * output
        gates[step] += into
        state = state + math.sqrt((memory + step) ** 2 / 16 + 17 / 16) * gates
        output = state + gates / 4
        rows.append(output)
    matrix = torch.stack(rows)
    if not bool(torch.isfinite(matrix).all()):
        return math.inf
    # Every entry took at most a dozen roundings per step.
    return float(dense_norm(matrix)) * (1 + 1e-12 * steps)
