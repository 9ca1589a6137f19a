"""Bounds entry by entry of how tensors move: Lipschitz bounds from Linf and from L1."""
