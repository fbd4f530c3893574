"""What an accelerator says, in one command: checks first, then measures. See docs/gpu.md; start reading at `runner`."""
