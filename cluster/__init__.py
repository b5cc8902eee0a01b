"""Clusters for mtil. Runs from a checkout; not part of the wheel."""
