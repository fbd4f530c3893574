"""Checks and measures on a GPU, the most valuable first, in the time that there is.

    python -m benchmarks.gpu --minutes 10 --out DIR
    python -m benchmarks.gpu --device cpu --tiny --out DIR          # a dry run: every case, tiny models
    python -m benchmarks.gpu --list
    python -m benchmarks.gpu --only "laws,training step llama-3.2-1b" --out DIR

Needs torch, Transformers and this repository; PEFT, bitsandbytes and torchao for the cases that are theirs. Models are
random and made on the device. DIR/gpu.json is written after every case. docs/gpu.md says what each number means.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.registry import in_order
from benchmarks.gpu.runner import exit_code, run_cases
from softprompt.errors import SoftpromptError
from softprompt.models.device import pick_device


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--tiny", action="store_true", help="models of two layers, inputs of a few tokens")
    parser.add_argument("--only", default="", help="cases whose names begin so, with commas between")
    parser.add_argument("--list", action="store_true", help="the cases and their estimates, without running them")
    options = parser.parse_args()
    starts = tuple(filter(None, map(str.strip, options.only.split(","))))
    cases = [one for one in in_order() if one.name.startswith(starts or ("",))]
    if not cases:
        parser.error(f"no case begins with {' or '.join(starts)}; --list shows them")
    if options.list:
        print("\n".join(f"{one.rank:>5g}  {one.seconds:>4.0f} s  {one.name}" for one in cases))
        print(f"{sum(one.seconds for one in cases):.0f} s in all")
        return 0
    try:
        device, _ = pick_device(options.device)
    except SoftpromptError as error:
        parser.error(str(error))
    warnings.filterwarnings("ignore")
    bench = Bench(device, options.tiny, options.out)
    return exit_code(run_cases(bench, cases, 60 * options.minutes))


if __name__ == "__main__":
    sys.exit(main())
