"""Actor pools for scoring test rows and writing maps."""
