"""The frozen base model: finding, loading and measuring it.

Knows Transformers; knows nothing of soft prompts. Start reading at `frozen_lm`.
"""
