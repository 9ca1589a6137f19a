"""How far off an evaluation is: in float64, in extended precision, in the arithmetic a model runs in."""
