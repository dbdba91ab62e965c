"""Table `peers`: our server against other engines on the same weights, prompts and machine."""

from benchmarks.options import Options
from benchmarks.results import Table


def run(options: Options) -> Table:
    # Late, because the peers' own interpreters import this package and have nothing of ours.
    from benchmarks.peers.table import measure

    return measure(options)
