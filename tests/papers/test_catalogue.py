"""The catalogue as it stands: every paper is there, what the cards name exists, and what they show runs."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from workingpapers.errors import UserError, import_object
from workingpapers.methods.tables.common import TABLES
from workingpapers.papers import catalogue
from workingpapers.papers.catalogue import load_catalogue, paper, select
from workingpapers.papers.topics import load_topics, walk
from workingpapers.runs.claims import findings
from workingpapers.tasks.protocol import all_tasks, task_names

SLUGS = """
active-mtrl aim autoint b-prop batchnorm-only budget-longformer class-descriptions clinical-longformer
compression-survey concept-frequency croc dataset-decomposition denseclip din dreamlip dvpt embedding-compression
ep-alm essential-sparsity face-attributes fedloge fgcnn filo filter-db flair fmrlrec gaussian-ad generative-probe
georsclip giraffe gpt4image grain grassmann hip-attention hllm hyper-attention hyperspherical invariant-select isr
jft-300m kimianet laion-5b lister llm-dense-retrieval lm-infinite loki long-clip long-tail-memorization longpo m3i
medtrinity minference mix-ln moment-probing more-is-better nd-loss newborn-impact normgrad ocrbench off-the-shelf
optembed optfs outrank paragraph-pretraining pela prepacking ptm-survey rad-dino ram-plus ring-attention
robust-unmixing s2-scaling satmae-pp sbcl scaling-crossover scat-simclr slime sltrain softplus-attention spark
sparseformer spdf ssl-items stu-net svfit swin-v2 tvconv unified-embedding unireplknet visual-context-window voco
""".split()
CARDS = load_catalogue()
CLAIMS = {f"{card.slug}:{claim.id}": (card, claim) for card in CARDS.values() for claim in card.claims}
CHECKED = [name for name, (_, claim) in CLAIMS.items() if claim.check and claim.check.task in task_names()]
USABLE = [slug for slug, card in CARDS.items() if card.method]


def test_no_card_is_lost():
    assert set(SLUGS) <= set(CARDS)
    assert list(CARDS) == sorted(CARDS)


def test_the_readme_counts_what_is_there():
    text = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    said = re.search(r"a catalogue of (\d+) papers.* (\d+) of them so far.* for each of the (\d+)\.", text).groups()
    assert [int(number) for number in said] == [len(CARDS), len(USABLE), len(USABLE)], "README.md counts otherwise"


def test_no_paper_is_there_twice():
    for field in ("arxiv", "title"):
        values = [getattr(card, field).lower() for card in CARDS.values()]
        assert len(values) == len(set(values))


def test_papers_are_first_published_with_their_preprint_or_before():
    assert {slug: card.year for slug, card in CARDS.items() if card.year > 2000 + int(card.arxiv[:2])} == {}


def test_every_topic_exists():
    assert {topic for card in CARDS.values() for topic in card.topics} <= set(load_topics())


def test_papers_have_claims_and_a_task():
    surveys = [slug for slug, card in CARDS.items() if not card.claims]
    assert set(surveys) <= {"ptm-survey"}
    assert [slug for slug, card in CARDS.items() if not card.task and slug != "ptm-survey"] == []


def test_every_claim_has_either_a_check_or_the_reason_for_none():
    assert [name for name, (_, claim) in CLAIMS.items() if (claim.check is None) == (claim.untestable is None)] == []


@pytest.mark.parametrize("name", CHECKED)
def test_what_a_check_names_exists(name):
    card, claim = CLAIMS[name]
    [finding] = [found for found in findings(card, []) if found.claim == claim]  # no UserError
    if card.method:  # then it takes part: setting, metric, entry and what it is compared with exist
        assert finding.standing == "not run", f"task {claim.check.task} has no entry {claim.check.entry!r}"
        assert f"papers try {claim.check.task}" in finding.command


def test_entries_stand_for_papers_of_the_catalogue():
    named = {(entry.paper, task.name) for task in all_tasks() for entry in task.entries.values() if entry.paper}
    assert {slug for slug, _ in named} <= set(CARDS)
    assert [slug for slug, task in named if CARDS[slug].task != task] == []


@pytest.mark.parametrize("slug", USABLE)
def test_the_method_is_there(slug):
    assert import_object("method", CARDS[slug].method).__doc__


@pytest.mark.parametrize("slug", USABLE)
def test_the_usage_runs_as_it_stands(slug):
    card = CARDS[slug]
    names = [card.method.partition(":")[2], *(table for table, path in TABLES.items() if path == card.method)]
    assert any(re.search(rf"\b{name}\b", card.usage) for name in names), "the usage shows the method"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(card.usage, f"usage of {slug}", "exec"), {"__name__": "__main__"})
    assert printed.getvalue().strip()
    compared = re.findall(r": (\d+\.\d+)", printed.getvalue())  # as the values of a printed dict
    assert len(compared) < 3 or len(set(compared)) > 1, "numbers that are all equal show nothing"


def test_select_filters():
    assert [card.slug for card in select()] == list(CARDS)
    probe = select(task="probe")
    assert {card.slug for card in probe} == {slug for slug, card in CARDS.items() if card.task == "probe"}
    assert {card.year for card in select(year=2023)} == {2023}
    assert [card.slug for card in select(task="probe", year=2023)] == [c.slug for c in probe if c.year == 2023]


@pytest.mark.parametrize("topic", ["pre-trained-models", "compression", "feature-transfer"])
def test_select_takes_a_topic_with_all_below_it(topic):
    expected = [slug for slug, card in CARDS.items() if any(name in card.topics for name in walk(topic))]
    assert expected
    assert [card.slug for card in select(topic=topic)] == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"task": "prob"}, "Unknown task 'prob'. Did you mean 'probe'"),
        ({"topic": "compresion"}, "Unknown topic 'compresion'. Did you mean 'compression'"),
        ({"year": 1999}, "No paper of the year 1999. Known: 20"),
    ],
)
def test_select_refuses_what_nothing_has(wanted, message):
    with pytest.raises(UserError, match=re.escape(message)):
        select(**wanted)


def test_an_unknown_paper_is_refused_with_the_nearest():
    assert paper("loki") == CARDS["loki"]
    with pytest.raises(UserError, match=r"Unknown paper 'moment-probe'\. Did you mean 'moment-probing'") as error:
        paper("moment-probe")
    assert "`papers list`" in str(error.value)


def test_a_card_with_an_unknown_topic_is_refused(tmp_path, monkeypatch):
    text = (catalogue.CARDS / "loki.toml").read_text(encoding="utf-8")
    (tmp_path / "loki.toml").write_text(text.replace('topics = ["', 'topics = ["comprehension", "'), encoding="utf-8")
    monkeypatch.setattr(catalogue, "CARDS", tmp_path)
    with pytest.raises(UserError, match=r"Card loki.toml: topics: Unknown topic 'comprehension'\. Did you mean"):
        load_catalogue.__wrapped__()


def test_the_catalogue_cannot_be_changed():
    with pytest.raises(TypeError):
        CARDS["new"] = CARDS["loki"]
    with pytest.raises(AttributeError):
        CARDS["loki"].year = 1999
