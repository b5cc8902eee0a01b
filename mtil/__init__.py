"""Distributed multi-task training for breast-ultrasound images on Ray."""

__version__ = "0.1.0"
