"""The accepted shapes of a row: fields, learned tokens and scoring, one file a shape.

Knows no other package than data's own text and token modules. Start reading at `base`; `registry` lists the shapes.
"""
