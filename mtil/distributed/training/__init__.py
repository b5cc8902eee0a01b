"""Training of folds with Ray Train."""
