"""The table of a fidelity report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped

if TYPE_CHECKING:
    from softprompt.distillation.fidelity import Fidelity

COLUMNS = ("", "tokens", "KL", "recovered", "agreement", "log p", "prefill", "KV cache")
USUAL = ("exact_match", "f1", "rouge_l")  # of the scores where rows have answers; --json has all
UNSEEN = ("bleu", "valid_json")


def print_fidelity(report: Fidelity, titles: Mapping[str, str], console: Console) -> None:
    """Print a table: no text, the soft prompts under these titles, the full text; a line each.

    Metrics given with --metric have columns of their own.
    """
    table = Table(box=None, pad_edge=False)
    scores = report.full_text.scores
    scored = [name for name in USUAL if name in scores] + [name for name in scores if name not in (*USUAL, *UNSEEN)]
    for column in (*COLUMNS, *map(_short, scored)):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    lines = [("no text", report.no_text, 0.0)]
    lines += [(titles.get(name, name), measured, report.recovered(name)) for name, measured in report.soft.items()]
    for title, line, share in (*lines, ("full text", report.full_text, 1.0)):
        table.add_row(
            Text(escaped(title)),
            str(line.prefix_tokens),
            f"{line.divergence:.4f}",
            f"{share:.1%}",
            f"{line.agreement:.1%}",
            f"{line.log_likelihood:.3f}",
            f"{line.prefill_seconds * 1000:.0f} ms",
            f"{line.kv_bytes / 1024:,.0f} KiB",
            *(f"{line.scores[name]:.3f}" for name in scored),
        )
    console.print(table)
    note = f"on {report.rows} held-out messages; the text has {report.tokens} tokens; KL and log p in nats a token"
    console.print(Text(note, style="dim"))


def _short(metric: str) -> str:
    """A column's name: of a user's function without its file."""
    return escaped(metric.rpartition(":")[2])
