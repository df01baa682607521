"""The table of commands and what happens when one of them fails.

Owns: which module holds which command, the top-level help, and the exit code of every ending.
Never: imports a command's module before that command is asked for.
Read next: the module of the command you care about; each noun has one file.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from appliance.cli.context import Context, global_options, write_examples
from appliance.cli.context import Group as NounGroup
from appliance.errors import EX_IOERR, EX_SOFTWARE, EX_USAGE, ApplianceError

# Name: (module, attribute, help). The help stands here so that listing imports nothing.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("node", "init", "Make a new data folder and its unseal slots."),
    "serve": ("node", "serve", "Run the appliance in the foreground."),
    "status": ("node", "status", "Show the state of the running appliance."),
    "unseal": ("node", "unseal", "Open a sealed appliance."),
    "seal": ("node", "seal", "Drop the keys; only health and unseal answer."),
    "doctor": ("doctor", "doctor", "Check this machine and say what to fix."),
    "tenant": ("tenant", "tenant", "Tenants: list, create, isolate, remove."),
    "key": ("key", "key", "API keys: list, create, revoke."),
    "model": (
        "model",
        "model",
        "Models: push, list, show, search, lineage, call, reserve, remove.",
    ),
    "job": ("job", "job", "Calls that outlive their request: submit, list, wait, cancel."),
    "batch": ("batch", "batch", "Tables scored row by row: run, submit, list, show, output."),
    "schedule": ("schedule", "schedule", "Jobs submitted by the clock: create, list, pause, run."),
    "webhook": ("webhook", "webhook", "Addresses told of events: create, list, test, rotate."),
    "comparison": ("comparison", "comparison", "Comparisons of versions: list, show, cancel."),
    "sample": ("sample", "sample", "Calls that are kept for replays: set, show, off, remove."),
    "secret": ("secret", "secret", "Secrets of models: set, list, remove."),
    "egress": ("egress", "egress", "Where models may connect to: list, allow, deny, explain."),
    "alias": ("alias", "alias", "Aliases: list, set, remove."),
    "route": ("route", "route", "Routes: divide calls among versions, canary, promote, abort."),
    "drift": ("drift", "drift", "Drift of versions: baselines, scores, thresholds, compare."),
    "audit": ("audit", "audit", "The audit log: list, verify, prove."),
    "backup": ("backup", "backup", "Backups: make, verify, restore."),
    "config": ("settings", "config", "Settings: explain, check."),
    "runtime": ("runtime", "runtime", "What models run in: build, import, list, export, verify."),
    "gpu": ("gpu", "gpu", "GPUs: list them and who has them."),
    "tui": ("tui", "tui", "Open the console."),
}

EXAMPLES = (
    "appliance doctor",
    "appliance status",
    "appliance tenant create demo",
    "appliance key create demo ci --role owner",
    "appliance model push ./my-model demo/my-model",
    "appliance model call demo/my-model --data '[[1, 2, 3]]'",
    "appliance audit verify",
    "appliance tui",
)


class Root(NounGroup):
    """The top-level group; loads a command's module when the command is asked for."""

    def __init__(self) -> None:
        super().__init__(
            "appliance", help="Run other people's models, safely, on this machine.", epilog=None
        )
        self.params = global_options(hidden=False)
        self.params.append(
            click.Option(
                ["--version"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                help="Print the version.",
                callback=_print_version,
            )
        )

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table: a newcomer's order, not the alphabet's."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; ``None`` if there is none of this name."""
        found = COMMANDS.get(cmd_name)
        if found is None:
            return None
        module = import_module(f"appliance.cli.{found[0]}")
        command: click.Command = getattr(module, found[1])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Examples first."""
        write_examples(EXAMPLES, formatter)
        click.Group.format_help(self, ctx, formatter)


def _print_version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        from appliance import __version__

        click.echo(f"appliance {__version__}")
        ctx.exit(0)


def run(arguments: list[str]) -> int:
    """Parse and run one command line; the exit code to end with, problems printed."""
    context = Context(json="--json" in arguments)
    try:
        code = Root().main(arguments, prog_name="appliance", standalone_mode=False, obj=context)
    except ApplianceError as error:
        context.output.problem(error)
        return error.exit_code
    except click.exceptions.Abort:
        context.output.say("aborted")
        return 130
    except click.ClickException as error:
        _usage(error)
        return EX_USAGE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _forget_stdout()
        return EX_IOERR
    except Exception as error:  # noqa: BLE001 - the last line of defence says so in one line
        return _unexpected(error, context)
    return code if isinstance(code, int) else 0


def _usage(error: click.ClickException) -> None:
    ctx = getattr(error, "ctx", None)
    sys.stderr.write(f"error: {' '.join(error.format_message().split())}\n")
    path = ctx.command_path if ctx is not None else "appliance"
    sys.stderr.write(f"hint: {path} --help\n")


def _unexpected(error: Exception, context: Context) -> int:
    """A bug: say so in one line, and where the rest is."""
    import logging
    import traceback

    logging.getLogger(__name__).debug("unexpected", exc_info=error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
    context.output.problem(
        ApplianceError(
            f"This is a bug in the command line: {type(error).__name__}: {error} ({where}).",
            hint="please report the command you typed and this line",
        )
    )
    return EX_SOFTWARE


def _forget_stdout() -> None:
    """Stop Python from complaining about a closed pipe while it shuts down."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
