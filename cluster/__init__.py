"""Machines for mtil; runs from a checkout, and is not part of the wheel."""
