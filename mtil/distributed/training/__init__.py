"""Folds through Ray Train."""
