"""Makes `models/endstop-tiny` from nothing: facts, chats, tokenizer, training, evaluation, card.

One command runs it all: `python -m models.training --verse PATH`. Every file here owns one of those steps; none of
them is imported by the worker.
"""
