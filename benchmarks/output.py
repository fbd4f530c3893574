"""Where the results of a benchmark go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompt.files import write_json


def put(results: Mapping[str, Any], path: Path | None) -> None:
    """Into a JSON file, or onto standard output."""
    if path is None:
        print(json.dumps(results, indent=1))
    else:
        write_json(path, dict(results))
