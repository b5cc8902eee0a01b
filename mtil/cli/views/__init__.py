"""What commands print of runs and data sets."""
