"""Coverage-guided fuzzing with atheris, for as long as asked; started by tools/fuzz.

The targets, and what must hold of them, are those of tests/test_fuzz.py. Each is fuzzed by a
process of its own, which starts from the seeds of tests/fuzz/targets.py. An input that breaks the
invariant ends it and is saved in tests/fuzz/finds/<target>, where tests/test_fuzz.py finds it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MOST_BYTES = 4096
"""Of an input; longer ones find little more and take longer."""

MEMORY_MB = 1024
"""Of a whole process, with the interpreter and all that its instruments remember."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--target", action="append", help="only this one; can be repeated")
    parser.add_argument("--list", action="store_true", help="name the targets and stop")
    parser.add_argument(
        "--corpus", type=Path, help="keep what reaches new code in this folder, and go on from it"
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from tests.fuzz import targets

    if arguments.list:
        for name, target in targets.TARGETS.items():
            print(f"{name:16}{(target.__doc__ or '').splitlines()[0]}")
        return 0
    chosen = arguments.target or list(targets.TARGETS)
    unknown = [name for name in chosen if name not in targets.TARGETS]
    if unknown:
        print(f"fuzz: no target {unknown[0]}; --list names them", file=sys.stderr)
        return 2
    try:
        import atheris  # noqa: F401
    except ImportError as error:
        print(f"fuzz: atheris is missing ({error})", file=sys.stderr)
        return 1
    finds = [fuzz(name, arguments.seconds, arguments.corpus) for name in chosen]
    return 1 if any(finds) else 0


def fuzz(target: str, seconds: int, corpus: Path | None) -> bool:
    """Fuzz one target in a process of its own; returns whether anything was found."""
    from tests.fuzz import targets

    finds = targets.FINDS / target
    finds.mkdir(parents=True, exist_ok=True)
    before = set(finds.iterdir())
    with tempfile.TemporaryDirectory(prefix="spiceshm-fuzz-") as scratch:
        start = Path(scratch)
        for seed in targets.seeds(target):
            (start / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
        kept = corpus / target if corpus else start
        kept.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--run", target]
        command += [str(kept), *([str(start)] if corpus else [])]
        command += [
            f"-max_total_time={seconds}",
            f"-max_len={MOST_BYTES}",
            "-timeout=5",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-artifact_prefix={finds}{os.sep}",
            "-print_final_stats=1",
        ]
        log = subprocess.run(command, cwd=ROOT, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
    text = log.stdout.decode(errors="replace")
    found = sorted(set(finds.iterdir()) - before)
    if not any(finds.iterdir()):
        finds.rmdir()
    runs = re.search(r"stat::number_of_executed_units: *(\d+)", text)
    coverage = re.findall(r"cov: (\d+)", text)
    print(
        f"{target}: {seconds} s, {runs[1] if runs else '?'} inputs, "
        f"{coverage[-1] if coverage else '?'} places reached, {len(found)} found",
        flush=True,
    )
    for path in found:
        print(f"  {path.relative_to(ROOT)}")
    if found or log.returncode:
        print("\n".join(f"  | {line}" for line in text.splitlines()[-40:]))
    return bool(found or log.returncode)


def run(target: str, arguments: list[str]) -> None:
    """In the process of its own: fuzz until libFuzzer ends it."""
    import atheris

    # What numba compiles cannot have instruments in it.
    compiled = ["spiceshm.codecs.jit", "spiceshm.codecs.quic"]
    with atheris.instrument_imports(include=["spiceshm", "construct"], exclude=compiled):
        from tests.fuzz import targets

    # What is made once a process is made now, so that no input is blamed for it.
    for situation in range(256):
        targets.run(target, bytes([situation]))

    def one_input(raw: bytes) -> None:
        targets.run(target, raw)

    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
