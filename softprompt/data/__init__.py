"""Rows of text to rows of token ids: files and formats, templates, tokenising with a loss mask, batches.

    formats    one normal `Record`, whatever the file
    load       files, folders and Hub datasets to records and splits
    template   record to text: head (constant), body (varies), target
    tokenise   records to ids and mask
    batches    which rows make up which step, seeded and resumable

Imports neither torch nor transformers: tokenizers come in as arguments (`tokenizer.Tokenizer`).
"""
