"""Views: print runs and data sets as text, and build their JSON values."""
