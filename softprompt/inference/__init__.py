"""Text generation with soft prompts: sampling, decoding, chat.

Knows neither methods nor training. Start reading at `generate`.
"""
