"""Differences of several layers at once, in one ball: a second global bound beside the product of layer bounds."""
