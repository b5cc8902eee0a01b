"""Machines for mtil. Runs from a checkout on the operator's machine, and is not part of the wheel."""
