"""Endstop: a streaming LLM worker whose streams always end. docs/design.md draws the rooms."""
