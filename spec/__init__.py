"""Models of the protocols that promise an ending, and their checker. See README.md here."""
