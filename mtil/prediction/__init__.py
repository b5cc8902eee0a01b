"""A trained model applied to test rows and to ordinary images. No Ray."""
