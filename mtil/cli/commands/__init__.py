"""Commands of `mtil`. Each module adds its flags (`add_to`) and runs the command (`run`)."""
