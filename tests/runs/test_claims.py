"""What becomes of a claim, what a paper's status follows from, and which command measures it."""

from dataclasses import replace

import pytest
import toytask
from msgspec.structs import replace as changed

from workingpapers.errors import UserError, UserRemark
from workingpapers.papers.card import Card, Check, Claim
from workingpapers.runs import claims, leaderboard, reproduce
from workingpapers.runs.claims import command_for, findings, status
from workingpapers.runs.reproduce import markdown
from workingpapers.runs.reproduce import reproduce as run_claims
from workingpapers.runs.store import Run, Store
from workingpapers.tasks.protocol import Task
from workingpapers.terminal import evidence

TASK = "toytask:task"


@pytest.fixture(autouse=True)
def only_the_toy_task(monkeypatch):
    for module in (claims, reproduce):
        monkeypatch.setattr(module, "task_names", lambda: (TASK,))


def check(expect="helps", entry="better", **changes):
    return Check(task=TASK, entry=entry, expect=expect, **changes)


def claim(found=None, **changes):
    fields = {"id": "gain", "text": "It is better.", "metric": "accuracy", "baseline": "mean", "source": "Table 1"}
    reason = None if found else "needs a cluster"
    return Claim(**fields, verified=True, check=found, untestable=reason, **changes)


def card(*checks, method=None):
    return Card(
        slug="moment-probing",
        title="Moment probing",
        arxiv="2302.02334",
        year=2023,
        venue="ICML",
        topics=("x",),
        door="head",
        summary="A summary.",
        method=method,
        usage=method and "use it",
        claims=tuple(changed(claim(found), id=f"c{n}") for n, found in enumerate(checks)),
    )


METHOD = "workingpapers.methods.heads.naive_bayes:TiedGaussianNB"


def make(entry, seed, accuracy, loss=0.0, **changes):
    fields = {
        "task": TASK,
        "setting": "standard",
        "data": "numbers",
        "data_fingerprint": "d",
        "model": "",
        "model_fingerprint": "",
        "budget": "quick",
        "paper": None,
        "status": "ok",
        "metrics": {"accuracy": accuracy, "loss": loss},
        "settings": {"label": "label"},
    }
    fields |= changes
    key = f"{entry} {seed} {fields['data']} {fields['budget']} {fields['setting']}"
    return Run(key=key, entry=entry, seed=seed, **fields)


def runs(*differences, entry="better", **changes):
    base = [make("base", seed, 50.0, 50.0, **changes) for seed in range(len(differences))]
    ours = [make(entry, seed, 50.0 + d, 50.0 - d, **changes) for seed, d in enumerate(differences)]
    return base + ours


MEASURED = {
    "helps": (2.0, 2.25, 1.75),
    "hurts": (-2.0, -2.25, -1.75),
    "no difference": (0.0, 0.0, 0.0),
    "needs more seeds": (-9.0, 9.0, 1.0),
}
REPRODUCED = {
    ("helps", "helps"),
    ("hurts", "hurts"),
    ("no difference", "no difference"),
    ("not worse", "helps"),
    ("not worse", "no difference"),
}


def test_not_worse_asks_only_that_losses_that_matter_are_ruled_out():
    def standing(differences, metric):
        entry = {seed: 50 + change for seed, change in enumerate(differences)}
        difference, verdict = leaderboard.compare(entry, dict.fromkeys(entry, 50.0), metric)
        assert verdict == "needs more seeds"
        return claims._standing(check("not worse"), verdict, difference, metric)

    gains = [1.6, -0.1, 0.9, 0.4, 1.2]  # mean 0.8, interval -0.03 to 1.63: beyond the margin on the better side only
    assert standing(gains, toytask.ACCURACY) == "reproduced"
    assert standing([-gain for gain in gains], toytask.ACCURACY) == "needs more seeds"
    lower_is_better = replace(toytask.ACCURACY, higher_is_better=False)
    assert standing([-gain for gain in gains], lower_is_better) == "reproduced"


@pytest.mark.parametrize(
    ("differences", "standing"),
    [
        ((-1.0, -1.1, -0.9), "reproduced"),  # worse, but by less than is allowed
        ((-4.0, -4.1, -3.9), "not reproduced"),
        ((-1.0, -3.0, -2.0), "needs more seeds"),  # the interval holds what is allowed, 2
        ((9.0, 8.0, 9.5), "reproduced"),
    ],
)
@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_claim_may_allow_a_loss_of_its_own(differences, standing, metric):
    (found,) = findings(card(check("not worse", metric=metric, tolerance=2.0)), runs(*differences))
    assert found.standing == standing
    assert "the claim allows 2; numbers" in evidence(found)


@pytest.mark.parametrize(("expect", "tolerance"), [("helps", 1.0), ("not worse", 0.0), ("not worse", -1.0)])
def test_a_tolerance_is_above_zero_and_of_claims_of_no_loss(expect, tolerance):
    with pytest.raises(ValueError, match=f"tolerance is {tolerance}; it must be above 0"):
        check(expect, tolerance=tolerance)


@pytest.mark.parametrize("expect", ["helps", "hurts", "no difference", "not worse"])
@pytest.mark.parametrize("verdict", MEASURED)
def test_the_standing_of_a_claim(expect, verdict):
    (found,) = findings(card(check(expect)), runs(*MEASURED[verdict]))
    assert found.verdict == verdict
    expected = "reproduced" if (expect, verdict) in REPRODUCED else "not reproduced"
    assert found.standing == ("needs more seeds" if verdict == "needs more seeds" else expected)


def test_a_finding_holds_both_values():
    (found,) = findings(card(check()), runs(2.0, 2.25, 1.75))
    assert (found.entry.mean, found.versus.mean, found.difference.mean) == (52.0, 50.0, 2.0)
    assert found.metric is toytask.ACCURACY
    assert found.board.conditions.data == "numbers"
    assert len(found.board.runs) == 6


def test_values_are_of_the_seeds_that_both_have():
    (found,) = findings(card(check()), [*runs(2.0, 2.25, 1.75), make("base", 3, 90.0), make("base", 4, 90.0)])
    assert (found.entry.mean, found.versus.mean, found.difference.mean) == (52.0, 50.0, 2.0)


def test_a_metric_of_its_own_counts_in_its_direction():
    # The loss falls by what the accuracy gains.
    (found,) = findings(card(check(metric="loss")), runs(2.0, 2.25, 1.75))
    assert (found.metric.name, found.difference.mean, found.standing) == ("loss", -2.0, "reproduced")


def test_another_entry_to_compare_with():
    against_slow = check(versus="slow")
    more = [make("slow", seed, 60.0) for seed in range(3)]
    (found,) = findings(card(against_slow), [*runs(2.0, 2.25, 1.75), *more])
    assert (found.versus.mean, found.verdict, found.standing) == (60.0, "hurts", "not reproduced")
    (found,) = findings(card(against_slow), runs(2.0, 2.25, 1.75))
    assert found.standing == "not run"


@pytest.mark.parametrize(
    "others",
    [
        [],
        runs(2, 2, 2, data="others"),
        runs(2, 2, 2, setting="trouble"),
        runs(2, 2, 2, model="another", model_fingerprint="m"),
        runs(2, 2, 2, task="another"),
        [run for run in runs(2, 2, 2) if run.entry == "base"],
        [replace(run, status="failed", metrics={}) if run.entry == "better" else run for run in runs(2, 2, 2)],
    ],
    ids=["none", "other data", "other setting", "other model", "other task", "no entry", "failures"],
)
def test_runs_that_do_not_fit_do_not_count(others):
    (found,) = findings(card(check()), others)
    assert (found.standing, found.verdict, found.board) == ("not run", None, None)
    assert found.command == f"papers try {TASK} --entries better"


def test_a_model_that_played_no_part_may_have_any_name():
    (found,) = findings(card(check()), runs(2, 2, 2, model="another"))
    assert found.standing == "reproduced"


def test_a_claim_whose_entry_failed_says_so():
    bad = [replace(run, status="failed", error="oh", metrics={}) if run.entry == "better" else run for run in runs(2)]
    (found,) = findings(card(check()), bad)
    assert evidence(found) == f"better failed: oh; again: papers try {TASK} --entries better"
    assert evidence(findings(card(check()), [])[0]) == f"papers try {TASK} --entries better"
    (found,) = findings(card(check()), [*bad, *runs(2, 2, 2)])
    assert (found.standing, found.failure) == ("reproduced", "")


def test_the_full_budget_counts_before_more_seeds():
    both = [*runs(2, 2, 2, 2, 2), *runs(-2, -2, -2, budget="full")]
    (found,) = findings(card(check()), both)
    assert (found.board.conditions.budget, found.verdict) == ("full", "hurts")


def test_data_named_by_the_check_or_by_the_caller():
    here, there = runs(2, 2, 2), runs(-2, -2, -2, data="others")
    assert findings(card(check(data="others")), here + there)[0].verdict == "hurts"
    assert findings(card(check()), here + there, data="others")[0].verdict == "hurts"
    assert findings(card(check(data="others")), here + there, data="numbers")[0].verdict == "helps"


def test_what_has_no_check_or_no_entry():
    found = findings(card(None, check(entry="not-there"), Check(task="later", entry="better", expect="helps")), [])
    assert [item.standing for item in found] == ["not testable", "no entry yet", "no entry yet"]
    assert [item.command for item in found] == ["", "", ""]
    assert [evidence(item) for item in found] == [
        "needs a cluster",
        f"not-there of task {TASK}",
        "better of task later",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (check(setting="standrad"), "Card moment-probing: Unknown setting 'standrad' of task toytask:task."),
        (check(setting="trouble"), "Card moment-probing: Entry 'better' takes part in standard, not in 'trouble'"),
        (check(versus="bas"), "Card moment-probing: Unknown entry 'bas'. Did you mean 'base'?"),
        (check(entry="base"), "Card moment-probing: The entry 'base' is compared with itself"),
        (check(versus="better"), "Card moment-probing: The entry 'better' is compared with itself"),
        (check(metric="acuracy"), "Card moment-probing: Unknown metric 'acuracy'. Did you mean 'accuracy'?"),
    ],
)
def test_checks_that_name_what_is_not_there_are_refused_with_the_card(wrong, message):
    with pytest.raises(UserError) as caught:
        findings(card(wrong), [])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("checks", "found", "method", "expected"),
    [
        ([], [], None, "card"),
        ([None], [], None, "card"),
        ([None], [], METHOD, "method"),
        ([check(entry="not-there")], [], METHOD, "method"),
        ([check(), None], [], METHOD, "entry"),
        ([check()], runs(-9.0, 9.0, 1.0), METHOD, "entry"),
        ([check()], runs(2.0), METHOD, "entry"),
        ([check(), check(entry="not-there")], runs(2.0, 2.0, 2.0), METHOD, "measured"),
        ([check()], runs(-2.0, -2.0, -2.0), METHOD, "measured"),
    ],
)
def test_the_status_follows_from_what_exists(checks, found, method, expected):
    paper = card(*checks, method=method)
    assert status(paper, findings(paper, found)) == expected


@pytest.mark.parametrize(
    ("measured", "data", "command"),
    [
        (check(), None, "--entries better"),
        (check(), "numbers", "--entries better"),
        (check(), "others", "--data others --entries better"),
        (check(data="mine"), None, "--data mine --entries better"),
        (check(data="mine"), "numbers", "--entries better"),
        (check(versus="base"), None, "--entries better"),
        (check(versus="slow"), None, "--entries better,slow"),
        (check(entry="raises", setting="trouble"), None, "--setting trouble --entries raises"),
        (check(data="my photos"), None, "--data 'my photos' --entries better"),
    ],
)
def test_commands(measured, data, command):
    setting = toytask.task.setting(measured.setting)
    assert command_for(measured, setting, data) == f"papers try {TASK} {command}"


def test_optional_metrics_that_an_entry_lacks_leave_the_claim_not_run(monkeypatch):
    loss = replace(toytask.LOSS, optional=True)
    setting = replace(toytask.setting("standard"), metrics=(toytask.ACCURACY, loss))
    task = Task(TASK, title="", settings=[setting])
    for name in ("base", "better"):
        task.entry(name=name)(lambda train, context: None)
    for module in (claims, leaderboard):
        monkeypatch.setattr(module, "load_task", lambda name: task)
    lacking = [replace(run, metrics={"accuracy": 1.0}) if run.entry == "better" else run for run in runs(2, 2, 2)]
    assert findings(card(check(metric="loss")), lacking)[0].standing == "not run"
    assert findings(card(check(metric="loss")), runs(2, 2, 2))[0].standing == "reproduced"


def test_reproducing_runs_what_is_missing_and_no_more(tmp_path):
    store = Store(str(tmp_path / "runs.sqlite"))
    paper = card(check(), None, check("no difference", entry="slow", versus="base"), check(entry="not-there"))
    ((shown, found),) = run_claims([paper], store=store, seeds=3)
    assert shown is paper
    assert [item.standing for item in found] == ["reproduced", "not testable", "reproduced", "no entry yet"]
    before = store.runs()
    assert {run.entry for run in before} == {"base", "better", "slow"}
    run_claims([paper], store=store, seeds=3)
    assert store.runs() == before
    assert run_claims([card(None)], store=store, only_entered=True) == []
    text = markdown([(paper, found)])
    assert text.count("\n| It ") == 4
    assert text.startswith(f"### {paper.title} (`moment-probing`)\n")
    assert text.count("| **reproduced** |") == 2
    assert f"\n{max(run.finished for run in before):.10}, up to 3 seeds" in text


def test_markdown_names_every_machine_and_version():
    first, *others = runs(2, 2, 2)
    here, there = ({"processor": name, "cores": 2, "memory_gb": 8} for name in ("EPYC", "Xeon"))
    had = [replace(first, hardware=here | {"gpu": "H100"}, versions={"torch": "2.12"})]
    had += [replace(run, hardware=there, versions={"torch": "2.13"}) for run in others]
    had += [make("worse", 0, 0.0, status="failed", metrics={})]  # it brought nothing back, no machine either
    paper = card(check())
    text = markdown([(paper, findings(paper, had))])
    assert text.endswith("EPYC, 2 cores, 8 GiB, H100 and Xeon, 2 cores, 8 GiB; torch 2.12 and 2.13.")


def test_settings_that_cannot_use_the_data_are_left_out(monkeypatch):
    def refuses(task, *, setting, data, **_):
        if setting in refused:
            raise UserError(f"{data!r} is nothing for {setting!r}")

    monkeypatch.setattr(reproduce, "try_", refuses)
    paper, refused = card(check(), check(entry="raises", setting="trouble")), {"trouble"}
    with pytest.warns(UserRemark, match="Left out: .* is nothing for 'trouble'"):
        run_claims([paper], store="sqlite://", data="mine.csv")
    with pytest.raises(UserError, match="is nothing for 'trouble'"):  # the check's own data
        run_claims([paper], store="sqlite://")
    refused = {"standard", "trouble"}
    with pytest.raises(UserError, match="mine"):
        run_claims([paper], store="sqlite://", data="mine.csv")
