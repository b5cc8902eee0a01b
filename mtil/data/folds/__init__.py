"""Group related images and assign whole groups to folds."""
