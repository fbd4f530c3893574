"""The command line, one file a verb.

Knows everything below; nothing else prints. Start reading at `main`.
"""
