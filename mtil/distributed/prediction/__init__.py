"""Actor pools that score test rows and write maps."""
