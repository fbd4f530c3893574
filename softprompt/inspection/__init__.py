"""What a soft prompt does, and where: readings, each beside the share of the prompt's effect that it recovers.

Start reading at `effect`, then a file a section. Knows nothing about training, servers or the command line.
"""
