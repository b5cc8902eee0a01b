"""A run's folder: plan, configuration, checkpoints, maps. No Ray."""
