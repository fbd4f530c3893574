"""HTTP endpoints, one file a family.

Knows requests and responses only; the work is done in `server.service`. Start reading at `generation`.
"""
