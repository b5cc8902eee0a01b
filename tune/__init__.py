"""Hyperparameter search over mtil runs, with Optuna on Ray Tune."""
