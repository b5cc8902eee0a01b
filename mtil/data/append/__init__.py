"""Append images to a data set as a new version."""
