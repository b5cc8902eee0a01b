"""More images for a data set, as its next version."""
