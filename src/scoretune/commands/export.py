"""`scoretune export`: a run's model in the forms that others read, and to the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from scoretune.commands.options import Json
from scoretune.core import model_folder
from scoretune.core.errors import UserError

FILES = {
    "diffusers": "pytorch_lora_weights.safetensors",
    "peft": "adapter_model.safetensors",
    "kohya": "lora_kohya.safetensors",
    "merged": "model_index.json",
}
"""By which file the form of an exported folder is known."""


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder to write (default: the run's export/).")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="Of the LoRA: diffusers, peft or kohya.")
    ] = "diffusers",
    merge: Annotated[
        bool, typer.Option("--merge", help="The whole pipeline, with what was learned in it.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="Upload the folder to the hub as ORG/NAME, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="push: for all to see.")] = False,
    json_: Json = False,
) -> None:
    """Write a run's LoRA, or the merged model, with a model card; and upload it if told to."""
    if public and push is None:
        raise UserError("--public is about --push ORG/NAME: give it too, or leave it out")
    from scoretune.models import export as forms

    form = "merged" if merge else format_
    folder = to or run / "export" / form
    api = forms.hub() if push else None  # before anything is written
    card = _write(run, folder, form)
    url = forms.push(folder, push, public=public, api=api) if push else None
    if json_:
        typer.echo(json.dumps({"folder": str(folder), "form": form, "url": url}))
        return
    typer.echo(f"{form} in {folder}")
    if line := _loading(card, folder):
        typer.echo(f"load it by: {line}")
    if url is not None:
        typer.echo(f"on the hub, {'for all to see' if public else 'private'}: {url}")


def _loading(card: Path, folder: Path) -> str:
    """The line of a card's example that loads its folder; empty where it has none."""
    lines = card.read_text(encoding="utf-8").splitlines()
    calls = ("pipe", "scoretune.load_lora")
    loading = [x for x in lines if x.startswith(calls) and re.search(r"\bhere\b", x)]
    return re.sub(r"\bhere\b", lambda _: repr(str(folder)), loading[-1]) if loading else ""


def _refuse_another(folder: Path, form: str) -> None:
    """Refuse a folder with an export of another form: its card and its files would be mixed."""
    for other, file in FILES.items():
        if other != form and (folder / file).exists():
            raise UserError(
                f"{str(folder)!r} holds the form {other} already ({file}): choose another --to "
                f"for {form}"
            )


def _write(run: Path, folder: Path, form: str) -> Path:
    from scoretune.models import export as forms
    from scoretune.training import card, run_folder

    settings = run_folder.recorded(run)
    if form != "merged":
        forms.check(form)
    if model_folder.home(run) is not None:
        raise UserError(
            f"{str(run / 'model')!r} is the whole model already, which scoretune sample and "
            "model.source take: nothing is left to export"
        )
    _refuse_another(folder, form)
    policy = run_folder.load(run)
    if form == "merged":
        forms.merge(policy, settings.model, folder)
    else:
        forms.write(policy, folder, form)
    return card.write(run, folder, form)
