"""The stored form of a prepared data set, and the order and selection of rows to read."""
