"""The circle's state, its ledger, and what an action reads. No Ray."""
