"""Steering: vectors, doses, completions and the filter that they must pass."""
