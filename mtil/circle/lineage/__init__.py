"""Where one image's map and predictions come from."""
