r"""What models write to get LaTeX into the answer file, by the way that it goes, and what becomes of it.

`python -m tests.unit.rewards.escape_corpus` prints, for each way, how many right answers are paid when the
file is read as it is, how many as we read it, and in how many cases the policy is told while it works.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox_rl.chat.calls import BrokenCall, parse_object, to_json
from sandbox_rl.rewards.escapes import other_reading
from sandbox_rl.rewards.maths import score
from sandbox_rl.rewards.text import clean
from sandbox_rl.tools.arguments import escape_note
from sandbox_rl.types import Task

ANSWERS = {
    r"\boxed{7}": "7",
    r"\boxed{\frac{1}{2}}": "1/2",
    r"\frac{3}{4}": "3/4",
    r"\frac{\pi}{2}": r"\frac{\pi}{2}",
    r"3 \times 10^{5}": "300000",
    r"2\theta": r"2\theta",
    r"\tan\theta": r"\tan\theta",
    r"\nu": r"\nu",
    r"2\rho": r"2\rho",
    r"\alpha + \beta": r"\alpha + \beta",
    r"\sqrt{2}": r"\sqrt{2}",
    r"25 \text{ cm}": r"25 \text{ cm}",
    r"x \neq 3": r"x \neq 3",
}
"""What the model means → the gold answer that this is right for."""

WAYS = {
    "echo, JSON escaped once too little": (False, "echo '{}' > answer.txt"),
    "Python, JSON escaped once too little": (False, "python3 -c \"print(r'{}')\" > answer.txt"),
    "echo, JSON as it should be": (True, "echo '{}' > answer.txt"),
    "echo, escaped once too often": (True, "echo '{}' > answer.txt"),
    "echo without quotes": (True, "echo {} > answer.txt"),
    "echo -e": (True, "echo -e '{}' > answer.txt"),
    "printf": (True, "printf '{}' > answer.txt"),
    "here-document": (True, "cat > answer.txt <<EOF\n{}\nEOF"),
    "Python string": (True, "python3 -W ignore -c \"print('{}')\" > answer.txt"),
}
"""The way → whether backslashes were doubled for JSON, and the command."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One answer on one way; `as_it_is` and `as_read` are rewards."""

    way: str
    meant: str
    as_it_is: float
    as_read: float
    told: str | None


def outcomes(folder: Path) -> Iterator[Outcome]:
    """Every answer on every way, through real JSON, bash and Python."""
    for way, (escaped, command) in WAYS.items():
        for meant, gold in ANSWERS.items():
            doubled = meant.replace("\\", "\\\\") if "once too often" in way else meant
            written = command.replace("{}", doubled)
            body = to_json(written) if escaped else '"' + written.replace('"', '\\"') + '"'
            try:
                call, _ = parse_object('{"command": ' + body + "}", 0)
            except BrokenCall as error:
                yield Outcome(way, meant, 0.0, 0.0, error.reason)
                continue
            done = subprocess.run(
                ["bash", "-c", call["command"]], cwd=folder, capture_output=True, text=True, check=False
            )
            told = escape_note(call) or (done.stderr or None)
            raw = (folder / "answer.txt").read_bytes().decode()
            task = Task(id="t", prompt="", answer=gold, scorer="math")
            other = other_reading(raw)
            readings = [clean(raw)] + ([] if other is None else [clean(other)])
            as_it_is = float(score(raw.strip(), task)) if raw.strip() else 0.0
            yield Outcome(way, meant, as_it_is, max(float(score(text, task)) for text in readings), told)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(outcomes(Path(folder)))
    print("| way | answers | paid as they are | paid as read | not paid but told | lost unheard |")
    print("|---|---|---|---|---|---|")
    for way in WAYS:
        rows = [o for o in found if o.way == way]
        lost = [o for o in rows if o.as_read < 1]
        told = sum(o.told is not None for o in lost)
        plain = sum(o.as_it_is == 1 for o in rows)
        read = sum(o.as_read == 1 for o in rows)
        print(f"| {way} | {len(rows)} | {plain} | {read} | {told} | {len(lost) - told} |")
        for o in lost:
            if o.told is None:
                print(f"  lost: {way}: {o.meant}", file=sys.stderr)


if __name__ == "__main__":
    main()
