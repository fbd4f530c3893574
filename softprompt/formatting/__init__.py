"""Soft prompt, template and layout put together: from texts and conversations to token ids.

Knows neither training nor decoding. Start reading at `formatted_prompt`.
"""
