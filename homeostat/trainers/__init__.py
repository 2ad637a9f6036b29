"""One readable loop per training method."""
