"""Proved statements: the bound of a network, radii of its samples, the arithmetic for which they hold."""
