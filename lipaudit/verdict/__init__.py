"""What the results mean: checks, gates, the verdict, the comparison of two results."""
