"""`softprompt eval`: soft prompts beside the base model and a text prompt, on the same rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import (
    AsJson,
    BaseAdapter,
    ChatTemplate,
    Device,
    DeviceSplit,
    Dtype,
    LoadIn,
    Metrics,
    Model,
    TrustRemoteCode,
    complete_names,
    parse_names,
)
from softprompt.cli.progress import evaluation_progress
from softprompt.cli.sources import check_data_places
from softprompt.errors import ConfigError
from softprompt.settings import unescaped

_BASELINES = ("base", "text_prompt")
_FORMATTED = (*_BASELINES, "soft_prompt")


def eval_command(
    names: Annotated[
        str, typer.Argument(help="A soft prompt's name or path, or several: a,b,c.", autocompletion=complete_names)
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", "-d", help="Rows with answers: a file, or a folder with train.* and test.*."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="In place of --data: lm-evaluation-harness' tasks, their files or folders: a,b,c."),
    ] = None,
    model: Model = None,
    base_adapter: BaseAdapter = None,
    text_prompt: Annotated[str | None, typer.Option(help="Instruction of the text prompt to compare with.")] = None,
    shots: Annotated[int, typer.Option(min=0, help="Worked examples in the text prompt.")] = 3,
    shots_data: Annotated[
        str | None, typer.Option(help="Where they come from; the folder's train.* if --data is one.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns by other names, if not those of training: prompt=question.")
    ] = None,
    vote: Annotated[bool, typer.Option("--vote", help="Score the majority of the soft prompts too.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 64,
    metric: Metrics = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="With --tasks: examples before a question.")] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="With --tasks: texts as conversations.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="With --tasks: texts run at once (8).")] = None,
    chat_template: ChatTemplate = "",
    as_json: AsJson = False,
    dtype: Dtype = "auto",
    load_in: LoadIn = None,
    device: Device = "auto",
    device_map: DeviceSplit = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evaluate soft prompts beside the base model and a text prompt, with 95 % confidence intervals.

    Of a file that a soft prompt was trained on, only the rows held out in training are scored. With --tasks the scores
    are lm-evaluation-harness' own, beside the base model.
    """
    if (data is None) == (tasks is None):
        got = f"--data {data}, --tasks {tasks}"
        raise ConfigError("give rows with --data, or names of tasks with --tasks", got=got)
    for_rows = {
        "--text-prompt": text_prompt,
        "--shots-data": shots_data,
        "--vote": vote or None,
        "--metric": metric,
        "--columns": columns,
        "--chat-template": chat_template or None,
    }
    for_tasks = {
        "--num-fewshot": num_fewshot,
        "--apply-chat-template": apply_chat_template or None,
        "--batch-size": batch_size,
    }
    _check_misplaced(for_rows if data is None else for_tasks, "--tasks" if data is None else "--data")
    for source in (data, shots_data):
        check_data_places(source)
    from softprompt.cli.base_model import load_base
    from softprompt.data.turns import compared_references
    from softprompt.evaluation.compare import EMPTY_TEXT_PROMPT, compare
    from softprompt.evaluation.custom_metrics import load_custom_metrics
    from softprompt.evaluation.ensemble import check_vote
    from softprompt.evaluation.ensemble import vote as majority
    from softprompt.evaluation.held_out import held_out_rows
    from softprompt.evaluation.routing import expanded, routed, routers_of
    from softprompt.formatting.chat_template import chat_template_of, use_chat_template
    from softprompt.formatting.formatted_prompt import from_card
    from softprompt.inference.sampling import Sampling
    from softprompt.prompts import store

    of = chat_template_of(chat_template)
    routers = routers_of(parse_names(names))
    chosen = expanded(parse_names(names), routers)
    if data is None:
        from softprompt.cli.evaluate_tasks import TaskOptions, eval_tasks

        if routers:
            raise ConfigError("a router chooses among rows of --data", where="--tasks", got=", ".join(routers))
        options = TaskOptions(num_fewshot, limit, apply_chat_template, batch_size or 8)
        lm = load_base(model, chosen, dtype, device, trust_remote_code, base_adapter, load_in, device_map)
        eval_tasks(lm, chosen, str(tasks), options, as_json=as_json)
        return
    extra_metrics = load_custom_metrics(metric or [])
    cards = {name: store.load_card(store.find(name)) for name in chosen}
    held_out = held_out_rows(data, shots, shots_data, *cards.values(), columns=columns)
    rows = held_out.rows[:limit]
    if vote:
        check_vote(cards, rows)
    console = Console(stderr=True, quiet=as_json, soft_wrap=True)
    for note in held_out.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    lm = load_base(model, chosen, dtype, device, trust_remote_code, base_adapter, load_in, device_map)
    instruction = None if text_prompt is None else unescaped(text_prompt)
    with evaluation_progress(console, len(chosen) + 2) as progress:
        comparison = compare(
            lm,
            chosen,
            rows,
            instruction=instruction,
            shots=held_out.shots,
            sampling=Sampling(max_new_tokens),
            extra_metrics=extra_metrics,
            chat_template=of,
            progress=progress,
        )
    results = comparison.to_dict()
    template = use_chat_template(from_card(*store.load(store.find(chosen[0]), lm.geometry)), of, lm).template
    rows = compared_references(rows, template, lm.tokenizer)
    for router, experts in routers.items():
        each = [comparison.soft_prompts[expert] for expert in experts]
        frame = use_chat_template(from_card(*store.load(store.find(experts[0]), lm.geometry)), of, lm)
        results[router] = routed(lm, router, frame, each, rows).to_dict()
    if vote:
        results["vote"] = majority(list(comparison.soft_prompts.values()), rows).to_dict()
    if as_json:
        who = {"name": Path(chosen[0]).name} if len(chosen) == 1 else {"names": chosen}
        typer.echo(json.dumps({**who, "data": data, **results, "notes": [*held_out.notes, *comparison.notes]}))
        return
    print_comparison(_flat(results), Console(soft_wrap=True))
    for note in comparison.notes:
        console.print(Text(f"note: {note}", style="yellow"))
    if not held_out.shots and shots and EMPTY_TEXT_PROMPT not in comparison.notes:
        console.print(Text("the text prompt has no examples: --shots-data FILE gives it some", style="dim"))


def _check_misplaced(options: Mapping[str, object], place: str) -> None:
    """Raise ConfigError for options that have no effect there."""
    if misplaced := [flag for flag, value in options.items() if value is not None]:
        raise ConfigError(f"this option has no effect with {place}", got=", ".join(misplaced), hint="leave it out")


def _flat(results: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """One entry a row of the table; a soft prompt that is named as another row is told apart."""
    named = results.get("soft_prompts")
    soft = named if isinstance(named, dict) else {}
    rows = {key: values for key, values in results.items() if isinstance(values, dict) and values is not soft}
    own = {name if name not in rows else f"prompt {name}": values for name, values in soft.items()}
    last = {"vote": rows.pop("vote")} if "vote" in rows else {}
    return rows | own | last


def print_comparison(results: dict[str, dict[str, object]], console: Console) -> None:
    """A table: one row a subject, one column a metric, intervals after the values."""
    first = next(iter(results.values()))
    names = [key for key in first if key not in {"rows", "confidence_interval"}]
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for metric in names:
        table.add_column(metric.replace("_", " "), justify="right")
    for formatted, values in results.items():
        intervals = values["confidence_interval"]
        assert isinstance(intervals, dict)
        cells = [_cell(m, values[m], *intervals[m]) if m in values else "" for m in names]
        label = formatted.replace("_", " ") if formatted in _FORMATTED else formatted
        table.add_row(Text(escaped(label)), *cells, style="" if formatted in _BASELINES else "bold")
    console.print(table)
    console.print(Text(f"{first['rows']} rows; 95 % confidence intervals", style="dim"))


def _cell(metric: str, value: object, low: float, high: float) -> str:
    """Value and interval; BLEU and perplexity are large numbers."""
    if metric in {"bleu", "perplexity"}:
        return f"{value:.1f} [dim]{low:.1f}–{high:.1f}[/dim]"
    return f"{value:.3f} [dim]{low:.2f}–{high:.2f}[/dim]"
