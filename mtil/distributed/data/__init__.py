"""Delivery of shards to workers, and preparation on a cluster."""
