"""The search: known papers come first, typos are forgiven, topical questions get sensible answers."""

import re
from collections import Counter

import pytest

from workingpapers.papers.catalogue import load_catalogue
from workingpapers.papers.search import search

CARDS = load_catalogue()


def found(query, cards=None):
    return [hit.card.slug for hit in search(query, CARDS.values() if cards is None else cards)]


@pytest.mark.parametrize("slug", CARDS)
def test_a_paper_is_first_for_its_title_and_its_slug(slug):
    assert found(CARDS[slug].title)[0] == slug
    assert found(slug)[0] == slug
    assert found(slug.replace("-", " ").upper())[0] == slug


def title_words(card):
    return [word for word in re.findall(r"[^\W\d_]+", card.title.lower()) if len(word) >= 6]


def rarest_title_words():
    """Return for each paper the word of its title that the fewest titles have, by its first six letters."""
    spread = Counter(start for card in CARDS.values() for start in {word[:6] for word in title_words(card)})
    return {slug: min(title_words(card), key=lambda w: (spread[w[:6]], -len(w))) for slug, card in CARDS.items()}


SLIPS = {
    "two letters swapped": lambda word, at: word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    "a letter dropped": lambda word, at: word[:at] + word[at + 1 :],
    "a letter doubled": lambda word, at: word[:at] + word[at] + word[at:],
    "a wrong letter": lambda word, at: word[:at] + ("x" if word[at] != "x" else "q") + word[at + 1 :],
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_of_the_fingers_still_finds_the_paper(slip):
    missed = []
    for index, (slug, word) in enumerate(rarest_title_words().items()):
        at = (0, len(word) // 2, len(word) - 2)[index % 3]  # at the beginning, in the middle, near the end
        if slug not in found(SLIPS[slip](word, at))[:5]:
            missed.append((slug, SLIPS[slip](word, at)))
    assert len(missed) <= 0.05 * len(CARDS), missed


TOPICAL = {  # query: papers of which one must be first
    "few labels frozen features": {"generative-probe"},
    "long context attention": {"hyper-attention", "minference", "hip-attention", "softplus-attention"},
    "click through rate": {"din", "fgcnn", "autoint", "optfs", "optembed"},
    "linear probe": {"moment-probing", "generative-probe"},
    "anomaly detection": {"gaussian-ad", "filo"},
    "federated learning long tail": {"fedloge"},
    "low rank": {"sltrain", "pela"},
    "hyperspectral unmixing": {"robust-unmixing"},
    "scene text recognition": {"lister"},
    "citation impact": {"newborn-impact"},
    "imbalanced classes": {"sbcl"},
    "saliency maps": {"normgrad"},
    "length extrapolation": {"softplus-attention", "lm-infinite", "giraffe"},
    "embedding tables": {"unified-embedding", "embedding-compression", "optembed"},
    "embeding tabels": {"unified-embedding", "embedding-compression", "optembed"},
}


@pytest.mark.parametrize("query", TOPICAL)
def test_a_topical_query_gets_a_sensible_first_answer(query):
    assert found(query)[0] in TOPICAL[query]


def test_the_search_finds_a_paper_by_its_method():
    assert found("MomentProbeClassifier")[0] == "moment-probing"
    assert found("TiedGaussianNB")[0] == "generative-probe"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pre-training", "pretraining"),
        ("fine-tuning", "finetuning"),
        ("self-supervised", "selfsupervised"),
        ("probes", "probing"),
        ("Embedding", "embeddings"),
    ],
)
def test_spellings_of_one_word_find_the_same_papers(one, other):
    assert set(found(one)[:3]) & set(found(other)[:3])


def test_a_word_that_is_begun_finds_those_it_begins():
    assert {"gaussian-ad", "filo"} <= set(found("anoma"))


def test_a_paper_that_has_all_words_comes_before_one_that_has_one():
    hits = search("gaussian anomaly", CARDS.values())
    assert hits[0].card.slug == "gaussian-ad"
    assert hits[0].score > 1.5 * hits[1].score


@pytest.mark.parametrize("query", ["", "   ", "the of and", "zzzzzzqqq", "!?", "qx"])
def test_nothing_matches_nothing(query):
    assert found(query) == []


def test_no_cards_no_hits():
    assert found("probe", []) == []


def test_hits_are_ordered_by_score_and_the_order_of_cards_does_not_matter():
    hits = search("attention", CARDS.values())
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert min(hit.score for hit in hits) > 0
    assert found("attention", reversed(list(CARDS.values()))) == [hit.card.slug for hit in hits]
