"""Programs to measure mtil and alternatives side by side in a single run and to print JSON."""
