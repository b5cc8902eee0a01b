"""Groups of images that stay together, and folds made of groups."""
