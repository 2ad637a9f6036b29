"""Packaged text: the probe corpus and the bots' phrase banks. README.md names their origin."""
