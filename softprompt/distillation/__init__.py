"""Distillation of a long text into virtual tokens: the model with the text teaches the model after a soft prompt.

Knows nothing of servers. Start reading at `run`.
"""
