"""Files that are whole or absent; what a run has finished, on disk."""
