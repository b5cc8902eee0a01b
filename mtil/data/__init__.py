"""Prepare image collections as shards, and read rows from shards. Does not import Ray."""
