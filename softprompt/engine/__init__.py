"""Engines that run many requests with many soft prompts in one batch; what a server asks of them.

The Transformers engine is imported when it is asked for: it is built on parts of Transformers that move, and the vLLM
engine (`softprompt.vllm`) brings another version of it.
"""
