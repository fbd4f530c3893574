"""Methods: parameterizations that are trained and then frozen into a soft prompt, one file a method.

Knows neither training nor files. Start reading at `base`, then `registry` and `prompt_tuning`.
"""
