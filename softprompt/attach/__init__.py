"""Rows of text against a bank of prefixes: the one primitive of the runtime, and the one place that knows
Transformers' caches, masks and positions.

A prefix is everything constant in front of the varying text: lead ids, virtual tokens, follow ids. `bank` runs each
prefix once and keeps its keys and values, with gradient if the prompt has one. `hidden` runs rows against them, row i
behind its own prefix; `Session` does the same for decoding, one token a step.
For an encoder–decoder, whose rows are a text and an answer to it, the counterparts are `answer_states` and
`AnsweringSession`; `session` starts the right one.

`attention_mass` tells what rows look at in a prefix; `asked` keeps what they ask and get, to ask other keys the same.
`moved` turns the keys of a KV prompt to other positions.

Exactness: the model sees, for each token, the keys, the mask and the position it would see if prefix and row were
concatenated. The first `bank` checks that on the loaded model (`verify`) before anything relies on it.
"""
