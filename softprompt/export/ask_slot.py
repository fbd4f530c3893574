"""Ask a llama-server whose slots hold the prefix of this folder (`restore_slots.py`).

python ask_slot.py http://127.0.0.1:8080 TEXT [SLOT]
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path


def ask(url: str, text: str, slot: int) -> str:
    """The greedy answer to a text after the soft prompt."""
    facts = json.loads((Path(__file__).parent / "prefix.json").read_text(encoding="utf-8"))
    body = {
        "prompt": [*facts["ids"], facts["opening"] + text + facts["closing"]],  # ids and text in one list
        "id_slot": slot,
        "cache_prompt": True,  # go on behind what the slot holds
        "n_predict": 64,
        "temperature": 0,
    }
    request = urllib.request.Request(  # noqa: S310
        f"{url.rstrip('/')}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:  # noqa: S310
        answer = json.load(response)
    if answer["timings"]["cache_n"] < len(facts["ids"]):
        raise SystemExit(f"slot {slot} does not hold the prefix: run restore_slots.py again")
    return str(answer["content"])


def _main() -> None:
    """Print the answer to the text on the command line."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    sys.stdout.write(ask(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0) + "\n")


if __name__ == "__main__":
    _main()
