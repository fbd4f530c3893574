"""A frozen base and its soft prompt as one Transformers model, for the training loops and tools of other libraries.

Knows Transformers' conventions; does not know our own training loop. Start reading at `soft_prompt_model`, then
`backbone`.
"""
