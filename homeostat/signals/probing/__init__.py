"""Probing: frozen linear probes that read the user's affect, and what they are worth."""
