"""Endstop: a streaming LLM worker whose streams always end. docs/design.md draws the rooms."""

__version__ = "0.1.0.dev0"  # CHANGELOG.md
