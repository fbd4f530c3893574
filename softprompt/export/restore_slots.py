"""Put the keys and values of `prefix.slot` into slots of a running llama-server.

    python restore_slots.py http://127.0.0.1:8080 [SLOT …]

Without numbers of slots: into all of them. The server must have been started with this folder as `--slot-save-path`.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

SLOT = "prefix.slot"


def restore(url: str, slot: int) -> int:
    """Restore one slot; returns the number of tokens."""
    body = json.dumps({"filename": SLOT}).encode()
    address = f"{url.rstrip('/')}/slots/{slot}?action=restore"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            return int(json.load(response)["n_restored"])
    except urllib.error.HTTPError as error:
        why = "another version, --cache-type-k, --cache-type-v, -fa or model, or another --slot-save-path"
        raise SystemExit(f"slot {slot} refuses {SLOT} ({why}): {error.read().decode(errors='replace')}") from error


def _main() -> None:
    """Restore the slots named on the command line."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    url = sys.argv[1]
    with urllib.request.urlopen(f"{url.rstrip('/')}/slots", timeout=60) as response:  # noqa: S310
        known = [int(slot["id"]) for slot in json.load(response)]
    for slot in [int(number) for number in sys.argv[2:]] or known:
        sys.stdout.write(f"slot {slot}: {restore(url, slot)} tokens\n")


if __name__ == "__main__":
    _main()
