"""Circle state, ledger, and inputs of the actions. No Ray."""
