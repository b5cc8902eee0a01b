"""Image files: opening, checking and decoding to pixels."""
