"""What every command knows: the global options, the settings and where the appliance is.

Owns: the ``Context`` object and the global options, accepted before or after the command's name.
Never: prints or connects.
Read next: ``output`` and ``client``, which a command reaches through its context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance import config

_SENTENCE_CHARACTERS_MAX = 400

if TYPE_CHECKING:
    from appliance.cli.client import Client
    from appliance.cli.output import Output


@dataclass(slots=True, kw_only=True)
class Context:
    """The global options of one command line, filled in while it is parsed."""

    json: bool = False
    quiet: bool = False
    config_file: str = ""
    socket: str = ""
    url: str = ""
    api_key_file: str = ""
    ca: str = ""
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Output:
        """How this command line prints."""
        from appliance.cli.output import Output

        return Output(json=self.json, quiet=self.quiet)

    def settings(self) -> config.Settings:
        """The settings in force: file, then environment, then this command's flags."""
        return self.explained()[0]

    def explained(self) -> tuple[config.Settings, tuple[config.Explained, ...]]:
        """The settings in force and where each came from."""
        file = Path(self.config_file) if self.config_file else None
        return config.load(file, flags=self.flags)

    def where(self) -> config.Client:
        """Where the appliance is: flags, then environment, then the configured run folder."""
        return config.client(
            socket=self.socket,
            url=self.url,
            api_key_file=self.api_key_file,
            ca_file=self.ca,
            run_dir="" if self.socket or self.url else self.settings().paths.run_dir,
        )

    def client(self, *, timeout_s: float = 60.0) -> Client:
        """A connection to the appliance, to be used in a ``with`` block."""
        from appliance.cli.client import Client

        return Client(self.where(), timeout_s=timeout_s)


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if value:
            setattr(ctx.ensure_object(Context), name, value)
        return value

    return callback


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """The options every command takes; hidden in the help of all but the top."""

    def option(flag: str, name: str, text: str, **rest: Any) -> click.Option:
        return click.Option(
            [flag, f"_{name}"],
            help=text,
            hidden=hidden,
            expose_value=False,
            callback=_store(name),
            **rest,
        )

    return [
        option("--json", "json", "Print data as JSON.", is_flag=True),
        option("--quiet", "quiet", "Say nothing but data and errors.", is_flag=True),
        option("--config", "config_file", "Settings file.", metavar="FILE"),
        option("--socket", "socket", "Admin socket of the appliance.", metavar="PATH"),
        option("--url", "url", "Reach the appliance over HTTPS instead.", metavar="URL"),
        option("--api-key-file", "api_key_file", "File with the API key.", metavar="FILE"),
        option("--ca", "ca", "CA certificate of the appliance.", metavar="FILE"),
    ]


class Command(click.Command):
    """A command that takes the global options and shows examples before its options."""

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.extend(global_options(hidden=True))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, usage, text, options, in this order."""
        write_examples(self.examples, formatter)
        super().format_help(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Where the global options are listed."""
        formatter.write_paragraph()
        formatter.write_text("Global options (--json, --url, --config ...): appliance --help")


class Group(click.Group):
    """A group of one noun's commands; suggests the nearest name for a mistyped one."""

    command_class = Command

    def __init__(self, *args: Any, examples: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.params.extend(global_options(hidden=True))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples, usage, text, commands, in this order."""
        write_examples(self.examples, formatter)
        super().format_help(ctx, formatter)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name; ``remove`` is taken for ``rm``."""
        found = super().get_command(ctx, cmd_name)
        return super().get_command(ctx, "rm") if not found and cmd_name == "remove" else found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, each with its whole first sentence."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(_SENTENCE_CHARACTERS_MAX)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command named first in ``args``, or a usage error with the nearest names."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from difflib import get_close_matches

            near = get_close_matches(args[0], self.list_commands(ctx), n=3, cutoff=0.5)
            help_line = f" Did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{help_line}", ctx)
        return super().resolve_command(ctx, args)


def write_examples(examples: tuple[str, ...], formatter: click.HelpFormatter) -> None:
    """The examples of a command, verbatim, one a line."""
    if not examples:
        return
    with formatter.section("Examples"):
        for line in examples:
            formatter.write(f"  {line}\n")
    formatter.write_paragraph()


pass_context = click.make_pass_decorator(Context, ensure=True)
