"""The channel, its wake-ups and their races."""
