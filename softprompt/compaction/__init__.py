"""Virtual tokens computed from a long text's keys and values, without training.

Knows neither training nor files. Start reading at `selection`.
"""
