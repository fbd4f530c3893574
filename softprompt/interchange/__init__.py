"""Soft prompts of other tools, read and written, one file a format.

Foreign files are data: nothing is unpickled, unpacked to disk, downloaded or run, and every size is checked before
anything is allocated. Knows neither methods nor training. Start reading at `registry`.
"""
