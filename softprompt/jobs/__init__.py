"""Fine-tuning jobs: uploaded files, a queue in a database, and the workers that train soft prompts from it.

Start reading at `records`, then `store`, `worker`. Knows training and distillation, but no HTTP.
"""
