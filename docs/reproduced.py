"""Write docs/reproduced.md, and a summary of it in README.md, from the runs in your store.

papers reproduce --all --seeds 5      # makes the runs, in hours
python docs/reproduced.py             # reads them

A paper whose runs are not all in the store keeps what is written of it, with the date of its own runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from workingpapers.papers.card import Card
from workingpapers.papers.catalogue import load_catalogue
from workingpapers.runs.claims import findings
from workingpapers.runs.reproduce import markdown
from workingpapers.runs.store import Run, Store

Texts = dict[str, str]  # what is written of each paper of a section, by its slug
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
    place, readme = HERE / "reproduced.md", HERE.parent / "README.md"
    runs, before = Store(None).runs(), written(place.read_text())
    after: dict[str, Texts] = {}
    for title, _, tasks in SECTIONS:
        texts = {card.slug: told(card, tasks, runs, before[title]) for card in load_catalogue().values()}
        after[title] = {slug: text for slug, text in texts.items() if text}
    parts = [HEAD]
    for title, remark, _ in SECTIONS:
        parts += [f"## {title}\n", *([f"{remark}\n"] if remark else []), *(f"{t}\n" for t in after[title].values())]
    place.write_text("\n".join(parts))
    default, cifar = (after[title] for title, _, tasks in SECTIONS if "probe" in tasks)
    own = [after[title] for title, _, tasks in SECTIONS if not any(tasks.values())]
    summary = f"{counts(own)}\n\n{FOLDED}\n\n{side_by_side(default, cifar)}\n\n</details>"
    head, rest = readme.read_text().split(START)
    readme.write_text(f"{head}{START}\n{summary}\n{END}{rest.split(END)[1]}")


def written(text: str) -> dict[str, Texts]:
    """Return what a document of this kind says of each paper, by section."""
    found: dict[str, Texts] = {title: {} for title, _, _ in SECTIONS}
    for section in text.split("\n## ")[1:]:
        title, _, papers = section.partition("\n")
        for paper in papers.split("\n### ")[1:]:
            slug = paper.partition("\n")[0].rpartition("`)")[0].rpartition("(`")[2]
            found[title][slug] = f"### {paper.strip()}"
    return found


def told(card: Card, tasks: Mapping[str, str | None], runs: Sequence[Run], before: Texts) -> str:
    """Return what the runs say of a paper's claims in some tasks, or what was written, or nothing."""
    task = next((claim.check.task for claim in card.claims if claim.check), "")
    if task not in tasks:
        return ""
    items = findings(card, runs, data=tasks[task])
    if any(tasks.values()):  # another data set than the cards name: only what was measured on it
        items = [item for item in items if item.board]
    wanted = [item for item in items if item.command]
    if wanted and all(item.board for item in wanted):
        return markdown([(card, items)])
    return before.get(card.slug, "")


def rows(text: str) -> list[list[str]]:
    """Return the cells of the claims in what is written of a paper: claim, reported, measured, standing."""
    return [line[2:-2].split(" | ") for line in text.splitlines() if line.endswith("** |")]


def counts(sections: Sequence[Texts]) -> str:
    """Return in a sentence what became of the claims that a laptop can measure."""
    papers = [text for section in sections for text in section.values()]
    count = Counter(row[-1].strip("*") for text in papers for row in rows(text))
    total = sum(count[outcome] for outcome in OUTCOMES)
    return (
        f"Of {total} claims of {len(papers)} papers, {count['reproduced']} reproduced, "
        f"{count['not reproduced']} did not, and {count['needs more seeds']} need more seeds to tell."
    )


def side_by_side(default: Texts, cifar: Texts) -> str:
    """Return a table of claims with their differences on the default data and on CIFAR-10, and what was run where."""
    there = {(slug, row[0]): _cell(row) for slug, text in cifar.items() for row in rows(text)}
    lines = [
        f"| `{slug}` | {row[0]} | {cell} | {there.get((slug, row[0]), '')} |"
        for slug, text in default.items()
        for row in rows(text)
        if (cell := _cell(row))
    ]
    head = "| paper | claim | default data | CIFAR-10 |", "|---|---|---|---|"
    return "\n".join([*head, *lines, "", max(text.splitlines()[-1] for text in default.values())])


def _cell(row: Sequence[str]) -> str:
    difference = re.search(r"^(\S+) .*, difference (.+?) \(", row[2])
    return f"{difference[1]} {difference[2]}: {row[3]}" if difference else ""


if __name__ == "__main__":
    main()
