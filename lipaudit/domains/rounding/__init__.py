"""How far off an evaluation is: in float64, in extended precision, in the arithmetic a model runs in.

float64.py          the error recursion; its table `RULES`, which float64_linear.py and float64_bounded.py add to
extended.py         logits with more digits, for margins that float64 is too coarse for
native.py           the dtype of the model, whatever the order of its sums
"""

from lipaudit.domains.rounding import float64_bounded, float64_linear

__all__ = ["float64_bounded", "float64_linear"]
