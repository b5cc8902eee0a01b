"""One fold's training: losses, augmentation, engine, progress. No Ray."""
