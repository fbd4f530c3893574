"""The OpenAI-compatible HTTP server.

Knows engines by their interface only, and nothing of methods or training. Start reading at `app`, then `service`.
"""
