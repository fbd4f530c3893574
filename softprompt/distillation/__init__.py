"""Distillation of a long text into virtual tokens: the model with the text teaches the model with a soft prompt.

Knows nothing of servers. Entry point: `run.distill`.
"""
