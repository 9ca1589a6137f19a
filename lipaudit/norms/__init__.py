"""Spectral norms of single linear maps, each proved from above."""
