"""Preparation: from collections to the shards of a data set."""
