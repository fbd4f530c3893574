"""Virtual tokens as points for TensorBoard's projector: tensors.tsv, metadata.tsv and projector_config.pbtxt.

Embedding prompts are written as their embeddings, KV prompts as the values of all layers side by side (as in
`editing.similarity`). Beside every virtual token stands a random one of equal norm, so that closeness can be judged.
`tensorboard --logdir FOLDER` shows the points; https://projector.tensorflow.org loads the two files.

Shapes: P virtual tokens, C coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.inspection.controls import random_like
from softprompt.inspection.inspection import Inspection
from softprompt.prompts.base import SoftPrompt

_COLUMNS = ("label", "prompt", "token", "kind", "nearest words")


def projector_files(prompts: Sequence[tuple[str, SoftPrompt, Inspection]]) -> dict[str, str]:
    """The texts of all files by name; prompts of several forms or widths have files of their own, "tensors-2.tsv", ….

    Args:
        prompts: names, soft prompts and their readings, whose nearest words label the points.
    """
    groups: dict[tuple[str, int], list[tuple[str, SoftPrompt, Inspection]]] = {}
    for entry in prompts:
        groups.setdefault((entry[1].form, _points(entry[1]).shape[1]), []).append(entry)
    files, config = dict[str, str](), list[str]()
    for number, ((form, _), group) in enumerate(groups.items(), 1):
        suffix = "" if number == 1 else f"-{number}"
        tensors, metadata = f"tensors{suffix}.tsv", f"metadata{suffix}.tsv"
        vectors, labels = _rows(group)
        files[tensors] = "".join("\t".join(f"{x:.6g}" for x in vector) + "\n" for vector in vectors)
        files[metadata] = "".join("\t".join(map(_cell, row)) + "\n" for row in [_COLUMNS, *labels])
        name = f"virtual tokens ({form})"
        config.append(
            f'embeddings {{\n  tensor_name: "{name}"\n  tensor_path: "{tensors}"\n  metadata_path: "{metadata}"\n}}\n'
        )
    files["projector_config.pbtxt"] = "".join(config)
    return files


def _rows(group: Sequence[tuple[str, SoftPrompt, Inspection]]) -> tuple[list[list[float]], list[Sequence[str]]]:
    """The points, and the cells of their labels."""
    vectors, labels = list[list[float]](), list[Sequence[str]]()
    for name, prompt, inspection in group:
        for kind, shown in (("trained", prompt), ("random", random_like(prompt))):
            for i, vector in enumerate(_points(shown).tolist()):
                is_labelled = kind == "trained" and inspection.nearest is not None
                words = (
                    " ".join(inspection.nearest.tokens[i].tokens)
                    if is_labelled and inspection.nearest is not None
                    else ""
                )
                mark = f"{name} {i}" if kind == "trained" else f"({kind} {i})"
                vectors.append(vector)
                labels.append((mark, name, str(i), kind, words))
    return vectors, labels


def _points(prompt: SoftPrompt) -> Tensor:
    """[P, C]."""
    embeddings = prompt.input_embeddings()
    parts = prompt.similarity_vectors() if embeddings is None else [embeddings]
    return torch.cat([part.detach().float().cpu() for part in parts], dim=1)


def _cell(text: str) -> str:
    """A text without the characters that end a cell or row."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
