"""Phi models, light and fast, anywhere."""
