"""Runs: the one loop, and everything that is logged, evaluated and saved."""
