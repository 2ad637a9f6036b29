"""Signals: what the model perceives about itself and about the user."""
