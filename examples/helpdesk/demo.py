"""`make demo`: train a soft prompt on the help-desk task and show it beside the base model and a text prompt."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt import Sampling, SoftpromptError, compare, load_model
from softprompt.cli.evaluate import print_comparison
from softprompt.cli.main import fail, one_line_warnings
from softprompt.cli.progress import evaluation_progress
from softprompt.cli.train import run_training
from softprompt.evaluation.held_out import held_out_rows
from softprompt.prompts import store
from softprompt.training.config import resolve

CONFIG = Path("configs/helpdesk.yaml")
NAME = "helpdesk-demo"
ANSWER_TOKENS = 24
SHOTS = 3


def main(minutes: float | None = None) -> int:
    """Train, evaluate on the test split, print; returns the exit code.

    Args:
        minutes: that training may take at most, in place of the configuration's.
    """
    one_line_warnings()
    console = Console(soft_wrap=True)
    settings = resolve({"name": NAME, "train.minutes": minutes}, CONFIG)
    console.print(Text("softprompt demo: sort customer messages into queue and urgency, as JSON\n", style="bold"))
    code = run_training(settings, overwrite=True, resume=False, quiet=False, as_json=False, trust_remote_code=False)
    folder = store.locate(NAME)
    if code or not folder.exists():
        return code
    lm = load_model(settings.model)
    held_out = held_out_rows(str(settings.data), SHOTS, None)
    sampling = Sampling(ANSWER_TOKENS)
    with evaluation_progress(console, 3) as progress:
        comparison = compare(lm, NAME, held_out.rows, shots=held_out.shots, sampling=sampling, progress=progress)
    console.print()
    print_comparison(comparison.to_dict(), console)
    samples = Table(show_lines=True, expand=True)
    for column in ("message", "base model", f"text prompt ({SHOTS} examples)", "soft prompt"):
        samples.add_column(column)
    for i in range(3):
        answers = [e.answers[i].strip() for e in (comparison.base, comparison.text_prompt, comparison.soft_prompt)]
        samples.add_row(*(Text(cell) for cell in (held_out.rows[i].fields["prompt"], *answers)))
    console.print(samples)
    size = (folder / store.TENSORS).stat().st_size
    console.print(Text(f"artifact       {folder} ({size / 1024:,.0f} KiB; the base model stays as it was)"))
    console.print(Text(f"learning curve {folder / 'curve.png'}"))
    console.print(Text("next           " + "\n               ".join(next_commands())))
    return 0


def next_commands() -> list[str]:
    """What to type next."""
    tool = ".venv/bin/softprompt"
    return [
        f'{tool} generate {NAME} "I was charged twice, please fix it today"',
        f"{tool} eval {NAME} --data examples/helpdesk --json",
        f"{tool} show {NAME}",
        f"{tool} inspect {NAME} --html",
        f"{tool} train --data YOUR.jsonl --name yours",
    ]


if __name__ == "__main__":
    try:
        sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else None))
    except SoftpromptError as error:
        fail(error)
