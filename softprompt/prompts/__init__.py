"""The artifact: a soft prompt's tensors, its card, and both on disk.

Knows neither methods nor training. Start reading at `base`, then `forms`, `card` and `store`.
"""
