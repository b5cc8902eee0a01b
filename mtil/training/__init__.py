"""Training of one fold: losses, augmentation, engine and progress. Imports no Ray."""
