"""Soft prompts in vLLM, which knows nothing of them: keys and values of a whole prefix, put in its cache by name.

`compiled` computes and keeps them, `connector` hands them to vLLM, `engine` is the server's engine over vLLM, and
`middleware` with `published` brings the names to vLLM's own server. Only `connector`, `engine` and its `counters`
import vLLM.
"""
