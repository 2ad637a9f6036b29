"""Simulated users with a latent affect."""
