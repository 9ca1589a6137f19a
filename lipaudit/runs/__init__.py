"""One audit from start to end; shards and where they run; what is written down about a run."""
