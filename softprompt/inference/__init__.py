"""Text generation behind soft prompts: sampling, decoding, chat.

Knows neither methods nor training. Start reading at `generate`.
"""
