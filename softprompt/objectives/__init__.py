"""Training objectives: what a gradient step minimizes.

Knows neither methods nor optimizers. Start reading at `next_token`.
"""
