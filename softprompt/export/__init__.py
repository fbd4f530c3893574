"""Soft prompts as files that other engines run, and the comparison with those engines: a file a target.

Start reading at `base`, then `registry`. Knows neither training nor HTTP servers of ours.
"""
