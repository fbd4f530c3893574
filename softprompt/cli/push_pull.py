"""`softprompt push` and `softprompt pull`: soft prompts to and from the Hugging Face Hub."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from softprompt.cli.escape import escaped
from softprompt.cli.options import AsJson, SavedName

Repo = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A repository of hf.co; OWNER/NAME@REVISION too.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit. [main]")]


def push_command(
    name: SavedName,
    repo: Repo,
    private: Annotated[bool, typer.Option("--private", help="Only you and its owners may see it.")] = False,
    revision: Revision = None,
    message: Annotated[str, typer.Option("--message", "-m", help="Of the commit.")] = "",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it as a pull request.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Into a repository that holds something else than a soft prompt, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Push a soft prompt to the Hugging Face Hub, as a new commit of a repository that is made if it is missing.

    softprompt push tone org/tone --private

    Its tensors, card and pictures travel, with a model card. Your token is that of `hf auth login` or $HF_TOKEN.
    """
    from softprompt.prompts.sharing import push

    pushed = push(
        name,
        repo,
        private=private,
        revision=revision,
        message=message,
        create_pr=create_pr,
        overwrite=overwrite,
    )
    if as_json:
        typer.echo(json.dumps({"name": pushed.name, "url": pushed.url, "commit": pushed.commit, "files": pushed.files}))
        return
    console = Console(soft_wrap=True)
    console.print(Text(escaped(f"pushed      {pushed.url}  ({', '.join(pushed.files)})")))
    console.print(Text(escaped(f'next        softprompt generate {pushed.name} "your text"   (on any machine)')))


def pull_command(
    repo: Repo,
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Its name here; by default the repository's, in small letters.")
    ] = None,
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a soft prompt of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull a soft prompt from the Hugging Face Hub into $SOFTPROMPT_HOME (./prompts), after checking it.

    softprompt pull org/tone@v1 --name tone

    Verbs take OWNER/NAME in place of a name, too: they keep a copy in the Hub's cache.
    """
    from softprompt.prompts.sharing import pull

    folder = pull(repo, name=name, revision=revision, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({"name": folder.name, "files": str(folder)}))
        return
    console = Console(soft_wrap=True)
    console.print(Text(escaped(f"pulled      {folder}")))
    console.print(Text(escaped(f"next        softprompt show {folder.name}")))
