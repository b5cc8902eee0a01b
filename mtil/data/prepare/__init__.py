"""Collections to the shards of a data set."""
