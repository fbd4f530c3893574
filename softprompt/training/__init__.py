"""From settings to a saved soft prompt: checks, optimizer loop, checkpoints, sweeps.

Knows methods by name only. Start reading at `run`, then `loop`.
"""
