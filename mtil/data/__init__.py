"""Images on disk to prepared shards, and shards to rows. No Ray."""
