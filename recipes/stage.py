#!/usr/bin/env python3
"""Run one stage of a recipe, unless it is already done.

``stage.py run NAME --base OUT --in FILE... --out PATH... -- COMMAND...`` prints the exact command and runs it.

A stage is done for the same command, the same contents of its inputs and the same versions. Its inputs are all files
and folders that the command names and does not write; ``--in`` and ``--source`` say which of them must be there. These,
and the seconds that it took, stand in a stamp beside its first output (``PATH.stage.json``), which says "done" only
when the command has ended well. A stage that was cut short leaves its outputs to the same command, which may resume;
outputs of another command, of other inputs or of other versions go first. ``OUT/run.json`` collects the seconds of one
run of a recipe (``stage.py begin`` starts it); ``OUT/logs/NAME.log`` has everything that a stage printed, and `live`
says what is shown of it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from io import RawIOBase
from pathlib import Path
from typing import IO, Any

from live import Live, describe, last_words, verbose
from run_file import begin, cell, count_data, finish, note, versions
from values import fail

from orlhf_ext.cli.errors import UserError
from orlhf_ext.files.records import object_or_empty, sha256_file, write_json
from orlhf_ext.files.sidecars import sidecar_path

#: flags whose path a launcher writes besides its outputs, and keeps
WRITING_FLAGS = ("--ckpt.path", "--exo.cache_reference", "--groups.cache_features", "--logger.tensorboard_dir")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 10.0  # seconds that a stage gets to end by itself after a signal
_PR_SET_PDEATHSIG = 1


def read_stamp(path: Path) -> dict[str, Any]:
    """A stage's stamp; an empty one where there is none that can be trusted."""
    value = object_or_empty(path)
    lists = [value.get(key, []) for key in ("outputs", "scratch")]
    names = all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists)
    done = value.get("state") != "done" or isinstance(value.get("seconds"), int | float)
    return value if names and done else {}


class Hashes:
    """Content hashes of files and folders; a file that kept its size and times is read only once."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known = object_or_empty(cache)

    def file(self, path: Path) -> str:
        """SHA-256 of the bytes of a file."""
        status = path.stat()
        key = str(path.resolve())
        identity = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        entry = self.known.get(key)
        if not (isinstance(entry, list) and entry[:-1] == identity):
            entry = [*identity, sha256_file(path)]
        self.known[key] = entry
        return str(entry[-1])

    def path(self, path: Path, written: Collection[Path] = ()) -> str:
        """As `file`; for a folder, of names and contents of all files that are neither hidden nor in ``written``.

        A model's card, which `orlhf-ext card` writes when all stages are done, does not count.
        """
        if path.is_file():
            return self.file(path)
        digest = hashlib.sha256()
        for entry in sorted(path.rglob("*")):
            name = entry.relative_to(path)
            hidden = any(part.startswith(".") for part in name.parts)
            card = name.name == "README.md" and any(entry.parent.glob("*.safetensors"))
            if not (hidden or card) and entry.is_file() and not within(entry.resolve(), written):
                digest.update(f"{name}\0{self.file(entry)}\n".encode())
        return digest.hexdigest()

    def save(self) -> None:
        """Keep what is known for the next stage."""
        write_json(self.cache, {key: value for key, value in self.known.items() if os.path.exists(key)})


def within(path: Path, folders: Collection[Path]) -> bool:
    """Whether a path is one of ``folders``, or in one of them."""
    return any(path == folder or folder in path.parents for folder in folders)


def named(command: list[str]) -> Iterator[str]:
    """The words of a command that may be paths it reads: also ``PATH`` of ``NAME=PATH`` and ``PATH=WEIGHT``, and
    each of ``PATH,PATH``.

    A module that ``-m`` names is code, whose version counts, even where it is a folder here.
    """
    for flag, word in itertools.pairwise(command):
        if flag not in ("-m", *WRITING_FLAGS) and word.partition("=")[0] not in WRITING_FLAGS:
            for text in (word, *word.partition("=")[::2]):
                yield from {text, *text.split(",")}


def module_file(text: str) -> str:
    """The file of a user's own ``FILE.py:NAME``, or of ``MODULE:NAME``, as the command finds it; or nothing."""
    if re.search(r"\.py:\w+$", text):
        return text.rpartition(":")[0]
    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*", text):
        return ""
    module = text.partition(":")[0].replace(".", "/")
    places = [Path(place or ".") / module for place in ("", *os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((str(file) for file in files if file.is_file()), "")


def paths_read(command: list[str], written: Collection[Path]) -> set[str]:
    """The files, folders and modules that a command names and does not write, each file with the sidecar beside it."""
    found = set()
    texts = set(named(command))
    for text in texts | {module_file(text) for text in texts}:
        path = Path(text)
        if text and os.path.exists(text) and not within(path.resolve(), written):
            found.add(text)
            if path.is_file() and (sidecar := sidecar_path(path)).is_file():
                found.add(str(sidecar))
    return found


def fingerprint(args: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """What a stage's result depends on.

    ``args.inputs`` are local paths; ``args.source`` may also be names on a hub, which stand for themselves.
    """
    base = Path(args.base)
    own = [base / "logs", base / "run.json", *(f"{path}.stage.json" for path in args.out[:1])]
    written = [Path(path).resolve() for path in (*args.out, *args.scratch, *own)]
    hashes = Hashes(base / "logs" / ".hashes.json")
    for text in [*args.inputs, *args.source]:
        hub_name = text in args.source and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", text)
        if not os.path.exists(text) and not hub_name:
            fail(f"stage {args.name} needs {text}, which does not exist")
    wanted = {text for text in (*args.inputs, *args.source) if os.path.exists(text)}
    if args.out:  # a stage without an output always runs
        wanted.update(paths_read(command, written))
    contents = {text: hashes.path(Path(text), written) for text in sorted(wanted)}
    hashes.save()
    return {"command": command, "inputs": contents, "versions": versions()}


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear(name: str, old: dict[str, Any], outputs: list[str]) -> None:
    """Remove what an earlier, different stage wrote; what a user put there is never touched."""
    made = [*old.get("outputs", []), *old.get("scratch", [])]
    for text in outputs:
        if os.path.exists(text) and text not in made:
            fail(f"stage {name} would write {text}, which exists and which no recipe made; move it or give another OUT")
    for text in made:
        remove(Path(text))


def begin_command() -> None:
    """What a command's process does before it becomes the command."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    die_with_parent()


def die_with_parent() -> None:
    """No stage outlives a recipe that was killed: the kernel hands the parent's death on as SIGTERM."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_group(group: int) -> None:
    """Let what is left of a stage's processes end by itself, then on request, then by force."""
    for number, patience in ((0, 2.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 0.0)):
        deadline = time.monotonic() + patience
        try:
            os.killpg(group, number)
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.05)
        except (ProcessLookupError, PermissionError):
            return


def copy_output(source: IO[bytes], log: RawIOBase, show: Callable[[bytes], object]) -> None:
    """Everything a stage prints goes to its log and to ``show``, progress bars included.

    Neither a closed terminal nor a full disk may stop the reading: the stage would wait for it for ever.
    """
    while chunk := os.read(source.fileno(), 1 << 16):
        with contextlib.suppress(OSError):
            log.write(chunk)
        with contextlib.suppress(OSError):
            show(chunk)


def to_terminal(chunk: bytes) -> None:
    """Show a part of what a stage prints."""
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


def execute(command: list[str], log_path: Path, live: Live | None = None, shown: bool = True) -> int:
    """Run a command in a process group of its own; returns its exit status, minus the signal if it was killed.

    A signal to this process is handed to the whole group, which gets some seconds to end.

    Args:
        command: its words.
        log_path: the file that everything it prints goes to.
        live: the line that is shown while it runs; without one, everything is shown.
        shown: with ``live``, whether what it prints to its standard output is shown besides.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with open(log_path, "wb", buffering=0) as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        # A signal that comes before there is anybody to hand it to waits for that.
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if live and shown else subprocess.STDOUT,
                # The pipe hides how wide the terminal is.
                env={"COLUMNS": str(shutil.get_terminal_size((120, 24)).columns), **os.environ},
                start_new_session=True,
                preexec_fn=begin_command,
            )
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            log.write(f"{error}\n".encode())
            if live is None:
                print(error, file=sys.stderr)
            return 127
        caught: list[int] = []

        def forward(number: int, _frame: object) -> None:
            caught.append(number)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)

        before = {number: signal.signal(number, forward) for number in _ENDING}
        die_with_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        results: list[bytes] = []
        keep = to_terminal if live is None else results.append if shown else live.feed
        streams = [(child.stdout, keep), *([(child.stderr, live.feed)] if live and shown else [])]
        readers = [threading.Thread(target=copy_output, args=(pair[0], log, pair[1]), daemon=True) for pair in streams]
        for reader in readers:
            reader.start()
        deadline = float("inf")
        while child.poll() is None:
            if caught and deadline == float("inf"):
                deadline = time.monotonic() + _GRACE
            if time.monotonic() > deadline:
                break
            if live:
                live.draw()
            time.sleep(0.05)
        end_group(child.pid)
        status = child.wait()
        for reader in readers:
            reader.join(timeout=5)
        for number, handler in before.items():
            signal.signal(number, handler)
        if live:
            live.clear()
            to_terminal(b"".join(results))
    return -caught[0] if caught else status


def end_of(log_path: Path) -> bytes:
    """The last bytes of a log."""
    with open(log_path, "rb") as log:
        log.seek(-min(1 << 16, log_path.stat().st_size), os.SEEK_END)
        return log.read()


def why(status: int, end: bytes) -> str:
    """An exit status in words, and what the log's end adds to it."""
    if status >= 0:
        full = b"No space left on device" in end
        return f"failed with exit code {status}{' because the disk is full' if full else ''}"
    name = signal.Signals(-status).name
    return f"was killed ({name}{'; out of memory?' if -status == signal.SIGKILL else ''})"


def run(args: argparse.Namespace, command: list[str]) -> None:
    """The command ``run``."""
    if verbose():
        print(f"# --- {args.name}\n{shlex.join(command)}", flush=True)
    base = Path(args.base)
    # The name may have slashes; a log has none.
    log_path = base / "logs" / f"{args.name.replace('/', '_')}.log"
    want = fingerprint(args, command)
    stamp = Path(f"{args.out[0]}.stage.json") if args.out else None
    old = read_stamp(stamp) if stamp else {}
    same = {key: old.get(key) for key in want} == want
    if same and old.get("state") == "done" and all(os.path.exists(path) for path in args.out):
        note(base, args.name, old["seconds"])
        print(f"# {args.name}: already done ({old['seconds']:.1f} s)", flush=True)
        return
    if stamp:
        if not args.keeps_outputs and not (same and old.get("state") == "started"):
            clear(args.name, old, args.out)
        write_json(stamp, {**want, "state": "started", "outputs": args.out, "scratch": args.scratch})
    start = time.monotonic()
    live = None if verbose() else Live(args.name, describe(command))
    status = execute(command, log_path, live, args.show)
    seconds = round(time.monotonic() - start, 2)
    if status:
        end = end_of(log_path)
        if live and (said := last_words(end)):
            print(f"# {args.name}: {said}", file=sys.stderr, flush=True)
        fail(
            f"stage {args.name} {why(status, end)}; its log is {log_path}; the same command again resumes from there",
            128 - status if status < 0 else status,
        )
    if missing := [path for path in args.out if not os.path.exists(path)]:
        fail(f"stage {args.name} ended without writing {missing[0]}; its log is {log_path}", 1)
    for path in args.scratch:
        remove(Path(path))
    if stamp:
        done = {**want, "state": "done", "seconds": seconds, "outputs": args.out, "scratch": args.scratch}
        write_json(stamp, done)
    note(base, args.name, seconds)
    print(f"# {args.name}: done in {seconds:.1f} s", flush=True)


def main(argv: list[str] | None = None) -> None:
    """Parse and dispatch."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    own, command = words[:cut], words[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    beginning = actions.add_parser("begin", help="start OUT/run.json")
    beginning.add_argument("values", nargs="*", metavar="KEY=VALUE")
    joining = actions.add_parser("cell", help="write OUT/run.json with more keys into a file")
    joining.add_argument("file")
    joining.add_argument("values", nargs="*", metavar="KEY=VALUE")
    running = actions.add_parser("run", help="run one stage")
    running.add_argument("name")
    running.add_argument(
        "--in", dest="inputs", nargs="*", default=[], metavar="PATH", help="what must be there for the command to read"
    )
    running.add_argument("--source", nargs="*", default=[], metavar="PATH|NAME", help="the same, or a name on a hub")
    running.add_argument("--out", nargs="*", default=[], metavar="PATH", help="what it writes; none: it always runs")
    running.add_argument("--scratch", nargs="*", default=[], metavar="PATH", help="removed when the stage is done")
    running.add_argument("--show", action="store_true", help="show what it prints to its standard output, a table say")
    running.add_argument(
        "--keeps-outputs", action="store_true", help="the command itself decides what to do with outputs that exist"
    )
    counting = actions.add_parser("data", help="enter the data's counts into OUT/run.json")
    counting.add_argument("folder")
    counting.add_argument("--prefix", default="", help="of the names of its files, before train, val and test")
    finishing = actions.add_parser("finish", help="complete a summary and copy it to OUT")
    finishing.add_argument("summary")
    for sub in (beginning, joining, running, counting, finishing):
        sub.add_argument("--base", required=True, metavar="OUT", help="the recipe's output folder")
    args = parser.parse_args(own)
    if args.action == "run" and not command:
        fail(f"stage {args.name} has no command; write it after --")
    try:
        if args.action == "run":
            run(args, command)
        else:
            {"begin": begin, "cell": cell, "data": count_data, "finish": finish}[args.action](args)
    except UserError as error:
        fail(str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        fail(f"{error.strerror or error}{where}; fix that and run the same command again: finished stages are kept", 1)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback where there is no command yet to hand it to
    main()
