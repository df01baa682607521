"""Passphrases: from a hidden prompt, a file or standard input; never from the command line.

Owns: reading one, and asking twice for a new one.
Never: prints, keeps or logs it.
Read next: ``node.init`` and ``node.unseal``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from appliance.errors import ConfigInvalid, InputInvalid

MINIMUM_CHARACTERS = 8


def read_passphrase(file: str | None, *, is_new: bool) -> str:
    """The passphrase: the first line of ``file`` (``-`` is stdin), else asked for on the terminal.

    Raises:
        ConfigInvalid: the file cannot be read, or there is neither a file nor a terminal.
        InputInvalid: a new passphrase is shorter than 8 characters.
    """
    if file:
        text = _first_line(file)
    elif sys.stdin.isatty():
        text = click.prompt("Passphrase", hide_input=True, confirmation_prompt=is_new, err=True)
    else:
        raise ConfigInvalid(
            "No passphrase was given and there is no terminal to ask on.",
            hint="--passphrase-file FILE (- for standard input) or --key-file FILE",
        )
    if is_new and len(text) < MINIMUM_CHARACTERS:
        raise InputInvalid(f"A passphrase has at least {MINIMUM_CHARACTERS} characters.")
    return text


def _first_line(file: str) -> str:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{file}: the passphrase cannot be read: {error}.") from error
    return text.split("\n", 1)[0].rstrip("\r")
