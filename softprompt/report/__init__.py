"""Inspections as a page, as pictures and as points for TensorBoard's projector.

Start reading at `blocks` (what a section is made of), then `sections`; `page` and `pictures` draw them. Knows nothing
about models, training or the command line.
"""
