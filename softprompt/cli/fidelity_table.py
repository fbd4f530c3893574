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
    """No text, the soft prompts under these titles and the full text, a line each; what the numbers are of.

    The metrics that the user asked for have columns besides the usual ones.
    """
    table = Table(box=None, pad_edge=False)
    found = report.full_text.scores
    scored = [name for name in USUAL if name in found] + [name for name in found if name not in (*USUAL, *UNSEEN)]
    for column in (*COLUMNS, *map(_short, scored)):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    lines = [("no text", report.no_text, 0.0)]
    lines += [(titles.get(name, name), one, report.recovered(name)) for name, one in report.soft.items()]
    for title, one, share in (*lines, ("full text", report.full_text, 1.0)):
        table.add_row(
            Text(escaped(title)),
            str(one.prefix_tokens),
            f"{one.divergence:.4f}",
            f"{share:.1%}",
            f"{one.agreement:.1%}",
            f"{one.log_likelihood:.3f}",
            f"{one.prefill_seconds * 1000:.0f} ms",
            f"{one.kv_bytes / 1024:,.0f} KiB",
            *(f"{one.scores[name]:.3f}" for name in scored),
        )
    console.print(table)
    note = f"on {report.rows} held-out messages; the text has {report.tokens} tokens; KL and log p in nats a token"
    console.print(Text(note, style="dim"))


def _short(metric: str) -> str:
    """A column's name: of a user's function without its file."""
    return escaped(metric.rpartition(":")[2])
