"""Soft prompts of other tools: which format a path is, what is in it, and PEFT adapters out of ours."""
