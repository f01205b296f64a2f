"""Several runs: axes, grids, tuning, statistics over seeds."""
