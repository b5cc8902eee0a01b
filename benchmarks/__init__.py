"""Programs that measure mtil beside its alternatives, in one run, and print JSON."""
