"""`--to vllm`: compiled keys and values for vLLM's own server with softprompt's connector."""

from __future__ import annotations

from pathlib import Path

from softprompt.export.base import Exported, ExportSource, ExportTarget
from softprompt.export.registry import register_target


def _write(out: Path, source: ExportSource) -> Exported:
    from softprompt.vllm.published import publish

    published = publish(source.lm, source.prompt, source.card, out, overwrite=source.options.overwrite)
    note = f"{published.size} tokens of keys and values ({published.id[:8]}); docs/server.md says how to serve them"
    return Exported(out, f"softprompt serve --engine vllm --prompts-dir {out}", (note,))


register_target(ExportTarget("vllm", "vLLM with softprompt's connector: keys and values (both forms)", _write))
