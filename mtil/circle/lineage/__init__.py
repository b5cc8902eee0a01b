"""Lineage of an image: the sources of its map and predictions."""
