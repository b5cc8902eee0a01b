"""Coordinator actor of a circle run, and the driver in the command's process."""
