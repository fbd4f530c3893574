"""A process that imports the library once and then forks one training run per line of its input.

    {"folder": ..., "resume": true, "die_at": null}  ->  {"pid": 7}, {"kind": "step", "step": 1}, …, {"exit": -9}

Killing runs is then cheap: a fork takes milliseconds, an import of the library seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from softprompt.prompts.forms import prompt_digest
from softprompt.training.events import Event
from tests.support.tasks import learner, run
from tests.support.tiny import tiny_lm

STEPS = 60
WRITES = ((os, "fsync"), (os, "rename"), (os, "open"), (os, "mkdir"), (shutil, "rmtree"))  # of writing a checkpoint


def say(message: dict[str, Any]) -> None:
    """One line in one write, so that a kill cannot leave half of it."""
    os.write(1, (json.dumps(message) + "\n").encode())


def die_at_write(number: int) -> None:
    """SIGKILL this process just before the given call that touches the disk."""
    count = [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for module, name in WRITES:
        setattr(module, name, counted(getattr(module, name)))


def train(request: dict[str, Any]) -> None:
    """One run, told as it goes."""
    lm = tiny_lm("llama")
    if request.get("die_at"):
        die_at_write(request["die_at"])

    def report(event: Event) -> None:
        say({"kind": event.kind, "step": event.step})

    folder, steps = Path(request["folder"]), request.get("steps", STEPS)
    changes: dict[str, Any] = {"steps": steps, "save_every": 1, "patience": None, "lr": 0.1}
    result = run(lm, learner(lm, "prefix-tuning"), folder, resume=request["resume"], report=report, **changes)
    say({"kind": "result", "stopped": result.stopped, "step": result.step, "digest": prompt_digest(result.prompt)})


def main() -> None:
    """Serve requests until the input ends."""
    torch.set_num_threads(1)
    tiny_lm("llama")
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                train(json.loads(line))
                os._exit(0)
            except BaseException as error:
                say({"kind": "error", "error": repr(error)})
                os._exit(1)
        say({"kind": "started", "pid": pid})
        say({"kind": "exit", "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})


if __name__ == "__main__":
    main()
