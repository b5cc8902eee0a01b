"""The two-task network: architecture only, without device, loss or Ray."""

from mtil.models.network import NetworkOutput, TwoTaskNetwork

__all__ = ["NetworkOutput", "TwoTaskNetwork"]
