"""The gallery of a report: a card per scored image."""
