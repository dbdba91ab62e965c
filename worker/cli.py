"""The `dfastllm` command: reads flags into `VDIFF_*`, then starts the part that was asked for."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from worker.wire.known_settings import API, SERVE, WORKER, KnownSetting, check_names, settings_of

EXIT_MISCONFIGURED = 2

DESCRIPTION = """\
An OpenAI-compatible inference server for hybrid diffusion-AR language models.

  dfastllm serve                 everything on this machine: queue, API, one worker, built-in models
  dfastllm api                   the HTTP API alone; needs VDIFF_REDIS_URL
  dfastllm worker                one worker alone; needs VDIFF_REDIS_URL; start as many as you like
  dfastllm key ...               make an API key for the keys file
  dfastllm train ...             train the built-in models anew (`dfastllm train --help`)
  dfastllm train-drafter ...     train a drafter for your own verifier
  dfastllm eval-drafter ...      tokens committed a verify forward, without a server
  dfastllm convert-drafter ...   a drafter in the layout of transformers, or the published one
  dfastllm plot ...              the loss curves of training runs as a picture

`dfastllm <command> --help` lists the command's flags. Every flag of serve, api and worker is also
an environment variable: --max-batch-size is VDIFF_MAX_BATCH_SIZE.
"""

SERVE_EPILOG = """\
To watch the queue:
  rq info --url <address>          the start message names the address
  rq-dashboard -b 127.0.0.1 --redis-url redis://127.0.0.1:6380
                                   in a browser, after `serve --queue-port 6380` and
                                   `pip install 'dfastllm[dashboard]'`; whoever may log in
                                   to this machine can then read the queue
"""

# Commands with flags of their own, which are passed on as they are.
OTHERS = {
    "key": ("api.new_key", "make an API key for the keys file"),
    "train": ("engine.training", "train the built-in models anew"),
    "train-drafter": ("engine.training.train_drafter", "train a drafter for your own verifier"),
    "eval-drafter": ("engine.training.eval_drafter", "judge a drafter without a server"),
    "convert-drafter": ("engine.training.convert_drafter", "make a drafter that others load"),
    "plot": ("engine.training.plot", "draw the loss curves of training runs"),
}

HELP = {
    SERVE: "start everything on this machine",
    API: "start the HTTP API alone",
    WORKER: "start one worker alone",
}


def main() -> NoReturn:
    """Parse the command line and become, or supervise, what it names."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in OTHERS:
        _become(OTHERS[arguments[0]][0], arguments[1:])
    options = vars(_parser().parse_args(arguments))
    part = options.pop("part")
    os.environ.update({name: value for name, value in options.items() if value is not None})
    try:
        check_names(os.environ)
    except ValueError as error:
        sys.exit(_complaint(part, error))
    if part == SERVE and len(arguments) > 1:
        # Anew, without flags: a process's command line is there for everybody on the machine.
        _become("worker.cli", [SERVE])
    if part == SERVE:
        _supervise()
    _become(part, [])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dfastllm", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="COMMAND")
    for part, text in HELP.items():
        sub = parts.add_parser(
            part,
            usage=f"dfastllm {part} [--flag VALUE]...",
            help=text,
            description=text.capitalize() + ".",
            epilog=SERVE_EPILOG if part == SERVE else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for setting in settings_of(part):
            _add_flag(sub, setting)
    for part, (_, text) in OTHERS.items():
        parts.add_parser(part, help=text, add_help=False)
    return parser


def _add_flag(parser: argparse.ArgumentParser, setting: KnownSetting) -> None:
    is_switch = setting.default in ("true", "false")
    parser.add_argument(
        setting.flag,
        dest=setting.name,
        metavar="true|false" if is_switch else "VALUE",
        help=f"{setting.help} (default: {setting.default})".replace("%", "%%"),
        nargs="?" if is_switch else None,
        const="true" if is_switch else None,
    )


def _supervise() -> NoReturn:
    # Here, so that the other commands need not load it.
    from worker.supervisor import SupervisorError, supervise

    try:
        sys.exit(supervise(os.environ))
    except (SupervisorError, ValueError) as error:
        sys.exit(_complaint(SERVE, error))


def _complaint(part: str, error: Exception) -> int:
    sys.stderr.write(f"dfastllm {part}: {error}\n")
    return EXIT_MISCONFIGURED


def _become(module: str, arguments: list[str]) -> NoReturn:
    # -P: a folder called "api" or "worker" in the current directory must not be taken for ours.
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


if __name__ == "__main__":
    main()
