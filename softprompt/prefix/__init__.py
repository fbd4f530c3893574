"""Forward passes after a prefix: the keys and values of a soft prompt are computed once and shared by every row.

Knows Transformers' caches and masks; knows neither methods nor training. Start reading at `kv` and `packed`; `verify`
proves on the loaded model that the result equals plain concatenation.
"""
