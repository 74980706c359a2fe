"""Channels between threads. Knows neither Flask nor torch."""
