"""Prediction of test rows and ordinary images with trained models. Imports no Ray."""
