"""The embedded default model and the scripts that make it."""
