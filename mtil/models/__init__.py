"""The two-task network: architecture only, without device, loss or Ray."""

from mtil.models.network import Output, TwoTaskNetwork

__all__ = ["Output", "TwoTaskNetwork"]
