"""Write docs/reproduced.md, and the counts in README.md, from the runs in your store.

papers reproduce --all --seeds 5      # makes the runs, in hours
python docs/reproduced.py             # reads them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from workingpapers.papers.card import Card
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.runs.claims import Finding, findings
from workingpapers.runs.reproduce import markdown
from workingpapers.runs.store import Store

Found = list[tuple[Card, list[Finding]]]
OUTCOMES = "reproduced", "not reproduced", "needs more seeds"
HERE = Path(__file__).parent
START, END = "<!-- counted by docs/reproduced.py -->", "<!-- end -->"

HEAD = """# Reported beside measured

Written by `python docs/reproduced.py` from the runs that `papers reproduce` made. A claim is *reproduced* if the paired
difference over seeds says what it says, with its 95 % interval; *needs more seeds* if the interval is too wide to tell.
Everything is at the scale of a laptop, and claims that did not reproduce at this scale stand among the others. Where an
entry has fewer seeds than another, the seeds that both have are compared.
"""

SECTIONS: Sequence[tuple[str, str, dict[str, str | None]]] = [
    (
        "Frozen features and anomalies",
        "",
        {"probe": None, "anomaly": None},
    ),
    (
        "The same on CIFAR-10",
        "The claims whose checks can use it (`--data cifar10`; for `gaussian-ad` `--data one-class-cifar10`).\n"
        "CIFAR-10 has no distances between its classes, so `loki` has none here.",
        {"probe": "cifar10", "anomaly": "one-class-cifar10"},
    ),
    (
        "Long inputs",
        "SmolLM2-135M on documentation, and byte models of 140,000 parameters trained in the task on 64 bytes at a\n"
        "time. Claims on speed hold for the CPU named below and one thread.",
        {"long-context": None, "prefill": None},
    ),
    (
        "Clicks and recommendations",
        "",
        {"ctr": None, "recommend": None},
    ),
]


def main() -> None:
    """Write both files."""
    runs = Store(None).runs()
    parts, counted = [HEAD], []
    for title, remark, tasks in SECTIONS:
        found: Found = []
        for card in load_catalogue().values():
            task = next((claim.check.task for claim in card.claims if claim.check), "")
            items = findings(card, runs, data=tasks[task]) if task in tasks else []
            if any(tasks.values()):  # another data set than the cards name: only what was measured on it
                items = [item for item in items if item.board]
            if any(item.command for item in items):
                found.append((card, items))
        if not any(tasks.values()):
            counted += found
        parts.append("\n\n".join(part for part in (f"## {title}", remark, markdown(found)) if part) + "\n")
    (HERE / "reproduced.md").write_text("\n".join(parts))
    readme = HERE.parent / "README.md"
    before, rest = readme.read_text().split(START)
    readme.write_text(f"{before}{START}\n{counts(counted)}\n{END}{rest.split(END)[1]}")


def counts(found: Found) -> str:
    """Return a table of outcomes per paper, those that a laptop can measure."""
    lines = [f"| paper | {' | '.join(OUTCOMES)} |", "|---|---|---|---|"]
    for card, items in found:
        count = Counter(item.standing for item in items)
        if any(count[outcome] for outcome in OUTCOMES):
            lines.append(f"| `{card.slug}` | {' | '.join(str(count[outcome]) for outcome in OUTCOMES)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
