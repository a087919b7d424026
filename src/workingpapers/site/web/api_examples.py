"""Examples of what the API answers with: those of its OpenAPI description, about one paper of the catalogue.

Texts that end with "…" are cut, and of every list there is one thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute

LIKE_PAPER = "hyperspherical"
PAPER, ARXIV, TOPIC = "grassmann", "2308.01547", "feature-transfer"
HARDWARE = "AMD EPYC"
BOARD = "probe-representation-mnist-5k-quick-699d6fc8"
_SITE = "https://papers.example.org"
_TITLE = "Get the Best of Both Worlds: Improving Accuracy and Transferability by Grassmann Class Representation"
_SUMMARY = "A classifier gives every class one vector, and training pulls all features of the class towards it; …"
_ADDED, _CAME = "2026-11-25T10:00:00Z", "2026-11-25T10:00:00.000Z"
_PROBED = {"mean": 55.4, "low": 52.6, "high": 58.3}
_METRICS = [
    {
        "name": "accuracy",
        "unit": "%",
        "higher_is_better": True,
        "margin": 0.5,
        "about": "Share of held-back examples classified correctly.",
    },
    {
        "name": "transfer-accuracy",
        "unit": "%",
        "higher_is_better": True,
        "margin": 0.5,
        "about": "Accuracy of a linear probe on OpenMoji's groups.",
    },
]

# Of each model what is its own; a field that is not here has its default, or the example of its own model.
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "Paper": {
        "slug": PAPER,
        "page": f"{_SITE}/papers/{PAPER}",
        "title": _TITLE,
        "authors": [],
        "abstract": "",
        "summary": _SUMMARY,
        "venue": "ICCV 2023",
        "year": 2023,
        "published": None,
        "arxiv": ARXIV,
        "doi": None,
        "url": f"https://arxiv.org/abs/{ARXIV}",
        "pdf": f"https://arxiv.org/pdf/{ARXIV}",
        "code": "https://github.com/innerlee/GCR",
        "keywords": [],
        "topics": [TOPIC],
        "citations": 12,
        "stars": 34,
        "votes": 5,
        "task": "probe",
        "has_method": True,
        "standing": "reproduced",
        "source": "catalogue",
        "added": _ADDED,
    },
    "PaperDetail": {
        "bibtex": f"@inproceedings{{{PAPER},\n  title         = {{{{Get the Best of Both Worlds: …",
        "status": "measured",
        "notes": ["With one dimension the sign of a feature does not count, so it is not the cosine softmax."],
    },
    "Method": {
        "path": "workingpapers.methods.heads.grassmann:GrassmannClassifier",
        "door": "nn.Module head with its Riemannian optimiser; scikit-learn classifier",
        "usage": "from sklearn.datasets import load_digits\nfrom workingpapers.methods.heads.grassmann import …",
    },
    "Place": {
        "leaderboard": BOARD,
        "entry": "grassmann-k8",
        "rank": 3,
        "entries": 5,
        "metric": "accuracy",
        "value": {"mean": 96.3, "low": 95.7, "high": 97.0},
        "verdict": "needs more seeds",
    },
    "Claims": {"paper": PAPER},
    "Claim": {
        "id": "transfers-better",
        "text": "The features of such a network transfer better to other data.",
        "metric": "accuracy of a linear probe, mean over six data sets",
        "baseline": "linear layer with softmax",
        "source": "abstract",
        "verified": True,
        "standing": "reproduced",
        "verdict": "helps",
        "measured": _PROBED,
        "versus": {"mean": 50.9, "low": 49.7, "high": 52.1},
        "difference": {"mean": 4.5, "low": 2.5, "high": 6.5},
        "measured_in": _METRICS[1],
        "leaderboard": BOARD,
        "command": "papers try probe --setting representation --entries grassmann-k8",
        "untestable": None,
    },
    "Reported": {"on": "ResNet50-D", "value": 79.7, "baseline": 77.98, "unit": "%"},
    "Hit": {
        "title": _TITLE.replace("Grassmann Class", "<mark>Grassmann</mark> <mark>Class</mark>"),
        "snippet": "A classifier gives every <mark>class</mark> one vector, and training pulls …",
        "score": 3.17,
    },
    "Found": {
        "page": 1,
        "pages": 1,
        "total": 1,
        "exact": True,
        "notes": [],
        "did_you_mean": None,
        "seconds": 0.007,
    },
    "Period": {
        "name": "week",
        "key": "2026-W48",
        "label": "Week 48, 23 to 29 November 2026",
        "start": "2026-11-23",
        "end": "2026-11-29",
    },
    "Trend": {"score": 7.25, "why": "3 votes", "counts": {"vote": 3}, "is_new": False},
    "Trending": {"page": 1, "more": False, "previous": None, "next": None},
    "Picks": {
        "period": {
            "name": "day",
            "key": "2026-11-25",
            "label": "Wednesday 25 November 2026",
            "start": "2026-11-25",
            "end": "2026-11-25",
        }
    },
    "TopicPlace": {
        "id": TOPIC,
        "title": "Feature transfer",
        "parent": "transfer-learning",
        "kind": "technique",
        "gist": "The backbone is frozen; what it computes is the input of a small model.",
    },
    "Topics": {"papers": {TOPIC: 8}},
    "TopicPage": {
        "above": [
            {
                "id": "transfer-learning",
                "title": "Transfer learning",
                "parent": "background",
                "kind": "background",
                "gist": "Knowledge from one task helps in another that has fewer labels.",
            }
        ],
        "below": [],
        "page": 1,
        "total": 8,
        "more": False,
    },
    "Metric": _METRICS[0],
    "Leaderboard": {
        "name": BOARD,
        "page": f"{_SITE}/leaderboards/{BOARD}",
        "task": "probe",
        "task_title": "Which classifier on frozen features?",
        "setting": "representation",
        "title": "A small network trained with each head: accuracy, and what its features are like",
        "data": "mnist-5k",
        "model": "",
        "budget": "quick",
        "label": "label",
        "baseline": "softmax",
        "first": "softmax",
        "entries": 5,
        "runs": 25,
        "finished": "2026-11-25T21:15:41.721+00:00",
    },
    "LeaderboardDetail": {
        "metrics": _METRICS,
        "command": "papers try probe --setting representation …",
        "settings": {"threads": "1"},
        "versions": {"torch": "2.13.0"},
        "hardware": {"processor": HARDWARE},
        "fingerprints": {"data": "fbe695bf…"},
    },
    "Leaderboards": {"left_out": []},
    "Row": {
        "rank": 3,
        "entry": "grassmann-k8",
        "paper": PAPER,
        "seeds": 5,
        "values": {"accuracy": {"mean": 96.3, "low": 95.7, "high": 97.0}, "transfer-accuracy": _PROBED},
        "difference": {"mean": -0.26, "low": -0.78, "high": 0.26},
        "verdict": "needs more seeds",
        "costs": {"fit_seconds": 55.3, "peak_memory_mb": 806.2, "parameters": 107792.0},
        "failures": [],
    },
    "Feed": {
        "title": "Feature transfer",
        "atom": f"{_SITE}/feeds/topics/{TOPIC}.atom",
        "rss": f"{_SITE}/feeds/topics/{TOPIC}.rss",
        "json_": f"{_SITE}/feeds/topics/{TOPIC}.json",
        "template": False,
    },
    "HubPaper": {
        "id": ARXIV,
        "authors": [],
        "published_at": None,
        "submitted_on_daily_at": _CAME,
        "title": _TITLE,
        "summary": _SUMMARY,
        "upvotes": 5,
        "github_repo": "https://github.com/innerlee/GCR",
        "github_stars": 34,
    },
    "HubEntry": {"published_at": None, "submitted_on_daily_at": _CAME, "title": _TITLE, "summary": _SUMMARY},
    "Me": {"email": "ada@example.org", "curator": False},
    "Marks": {"voted": True, "tags": ["probes"], "in_library": True, "read": False},
    "MarkedPapers": {"page": 1, "total": 1, "more": False},
    "TagCount": {"tag": "probes", "papers": 1},
    "SavedSearch": {"id": 1, "query": "linear probe year:2023..", "alert": True},
    "RecommendedPaper": {"terms": ["features", "classifier"]},
    "Recommendations": {"terms": ["features", "frozen"], "learnt_from": 12, "note": ""},
}


def example(kind: Any) -> Any:
    """Return the example of a type: of a model, of a list of them, or of one that may be null."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        own = {name: value for it in reversed(kind.__mro__) for name, value in EXAMPLES.get(it.__name__, {}).items()}
        return {field.alias or name: _of_field(field, own, name) for name, field in kind.model_fields.items()}
    inner = example(get_args(kind)[0])
    return [inner] if get_origin(kind) is list else inner


def _of_field(field: Any, own: Mapping[str, Any], name: str) -> Any:
    if name in own:
        return own[name]
    if field.is_required():
        return example(field.annotation)
    return field.default.model_dump(by_alias=True) if isinstance(field.default, BaseModel) else field.default


def answers(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the examples of what routes answer with, by the routes' names."""
    return {route.name: example(route.response_model) for route in routes if isinstance(route, APIRoute)}
