"""What an operator sees: logs and outcomes."""
