"""Long texts into few virtual tokens: the frozen model with the text teaches the same model with a soft prompt."""
