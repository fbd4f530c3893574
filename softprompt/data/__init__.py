"""Rows of text to rows of token ids: files, row shapes, templates, loss masks, batches.

Knows neither torch nor Transformers: tokenizers come in as arguments (`tokenizer.Tokenizer`). Start reading at
`records`, then `template` and `tokenize`.
"""
