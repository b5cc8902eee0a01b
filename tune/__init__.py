"""Hyperparameter search over runs of mtil."""
