"""What is measured on held-out items, and its statistics."""
