"""A reward: one sentence of 8 to 16 words, which a function can check."""
