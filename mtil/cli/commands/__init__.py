"""The commands of `mtil`, each with its flags: `add_to` and `run`."""
