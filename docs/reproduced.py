"""Write docs/reproduced.md, and a summary of it in README.md, from the runs in your store.

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
from workingpapers.terminal import interval

Found = list[tuple[Card, list[Finding]]]
OUTCOMES = "reproduced", "not reproduced", "needs more seeds"
HERE = Path(__file__).parent
START, END = "<!-- written by docs/reproduced.py -->", "<!-- end -->"
FOLDED = "<details><summary>The claims on frozen features and anomalies, one by one</summary>"

HEAD = """# Reported beside measured

Written by `python docs/reproduced.py` from the runs that `papers reproduce` made. A claim is *reproduced* if the paired
difference over seeds says what it says, with its 95 % interval; *needs more seeds* if the interval is too wide to tell.
Everything is at the scale of a laptop, and claims that did not reproduce at this scale stand among the others. Where an
entry has fewer seeds than another, the seeds that both have are compared. Each interval stands alone: of twenty claims
about differences that are none, one is expected to look as if there were one.
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
    parts, counted, compared = [HEAD], [], []
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
        if "probe" in tasks:
            compared.append(found)
        parts.append("\n\n".join(part for part in (f"## {title}", remark, markdown(found)) if part) + "\n")
    (HERE / "reproduced.md").write_text("\n".join(parts))
    readme = HERE.parent / "README.md"
    before, rest = readme.read_text().split(START)
    summary = f"{counts(counted)}\n\n{FOLDED}\n\n{side_by_side(*compared)}\n\n</details>"
    readme.write_text(f"{before}{START}\n{summary}\n{END}{rest.split(END)[1]}")


def counts(found: Found) -> str:
    """Return in a sentence what became of the claims that a laptop can measure."""
    count = Counter(item.standing for _, items in found for item in items)
    total = sum(count[outcome] for outcome in OUTCOMES)
    return (
        f"Of {total} claims of {len(found)} papers, {count['reproduced']} reproduced, "
        f"{count['not reproduced']} did not, and {count['needs more seeds']} need more seeds to tell."
    )


def side_by_side(default: Found, cifar: Found) -> str:
    """Return a table of claims with their differences on the default data and on CIFAR-10, and what was run where."""
    there = {(card.slug, item.claim.text): item for card, items in cifar for item in items}
    lines = ["| paper | claim | default data | CIFAR-10 |", "|---|---|---|---|"]
    for card, items in default:
        for item in items:
            if item.board:
                cells = [_cell(item), _cell(there.get((card.slug, item.claim.text)))]
                lines.append(f"| `{card.slug}` | {item.claim.text} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", markdown(default).splitlines()[-1]])


def _cell(item: Finding | None) -> str:
    if item is None or not (item.metric and item.difference):
        return ""
    return f"{item.metric.name} {interval(item.difference, item.metric, signed=True)}: **{item.standing}**"


if __name__ == "__main__":
    main()
