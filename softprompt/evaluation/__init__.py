"""Scores of soft prompts beside baselines on held-out rows.

Knows neither methods nor training. Start reading at `evaluate` and `compare`.
"""
