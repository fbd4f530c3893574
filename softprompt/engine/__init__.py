"""Engines: continuous batching of many requests with many soft prompts.

Knows nothing of HTTP. Start reading at `base`, the interface that a server uses; `registry` has the engines by name.
"""
