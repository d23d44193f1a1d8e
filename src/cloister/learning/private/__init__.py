"""Private training in numpy: per-example clipping, sampling, integer sums."""
