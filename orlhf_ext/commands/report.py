"""One page about runs of recipes: ``orlhf-ext report outputs/RUN... --out report.html``

What ran, the results with their intervals, charts, training curves, and the prompts with answers before and after, of
one run or of several side by side. The page is one file that loads nothing from anywhere; it is light or dark as the
reader's system is. A run is the output folder of a recipe, finished or not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli.errors import command
from ..cli.flags import make_parser
from ..files.outputs import add_overwrite, check_file, check_folder
from ..files.records import atomic_write
from ..reports.page.page import drawings, render
from ..reports.page.runs import read_runs
from ..reports.track import to_trackio


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser("orlhf-ext report", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="output folder of a recipe")
    add("--out", required=True, metavar="FILE", help="the page, an .html file")
    add("--title", metavar="TEXT", help="above the page (the names of the runs)")
    add("--trackio", metavar="PROJECT", help="the trainings' curves, too, in a project of Trackio, if it is there")
    add("--figures", metavar="FOLDER", help="the charts of the results, too, each as an .svg file")
    add_overwrite(parser)
    args = parser.parse_args(argv)
    check_file(args.out, command="report", overwrite=args.overwrite, ends=(".html",))
    if args.figures:
        check_folder(Path(args.figures), "--figures")
    return args


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw, write."""
    args = parse(argv)
    runs = read_runs(args.runs)
    title = args.title or ", ".join(run.name for run in runs)
    page = render(runs, title, "orlhf-ext report")
    drawn = drawings(runs) if args.figures else ()
    for path, text in ((args.out, page), *((Path(args.figures) / f"{name}.svg", text) for name, text in drawn)):
        with atomic_write(path) as stream:
            stream.write(text)
    if args.trackio:
        print(f"{to_trackio(runs, args.trackio)} trainings are in Trackio: trackio show --project {args.trackio}")
    for sentence in (sentence for run in runs for sentence in run.missing):
        print(sentence)
    print(f"{args.out}: {len(page.encode()) / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    main()
