"""The artifact: a soft prompt's tensors, its card, and both on disk.

Knows neither methods nor training. Start reading at `forms`, then `card` and `store`.
"""
