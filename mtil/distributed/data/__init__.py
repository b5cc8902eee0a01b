"""Shards to workers, and preparation on a cluster."""
