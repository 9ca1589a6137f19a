"""The figures of the report: an `Audit` in, positions and texts for the templates out."""
