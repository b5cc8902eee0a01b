"""What a prepared data set stores, and how its rows are read."""
