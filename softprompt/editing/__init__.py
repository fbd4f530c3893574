"""New soft prompts made from saved ones: composition, pruning, similarity.

Knows neither training nor serving. Start reading at `compose`.
"""
