"""From signals to reward."""
