"""One module per tracker, each the only one that imports its library."""
