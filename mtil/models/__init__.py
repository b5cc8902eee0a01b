"""The two-task network and its parts; architecture only: no device, no loss, no Ray."""

from mtil.models.network import Output, TwoTaskNetwork

__all__ = ["Output", "TwoTaskNetwork"]
