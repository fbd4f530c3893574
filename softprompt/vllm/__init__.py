"""Soft prompts in vLLM: an engine of our server, and a plugin of vLLM's own.

Knows nothing of training. Start reading at `engine` for the first and at `middleware` and `connector` for the second.
"""
