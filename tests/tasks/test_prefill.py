"""First passes over prompts of unequal length: every entry from end to end, what is counted, what is refused."""

import dataclasses
import subprocess
import sys

import pytest
import tinyreader
import torch
from tinymodels import tiny, tokens

from workingpapers.data.language_models import load_language_model
from workingpapers.errors import UserError
from workingpapers.runs.execute import try_
from workingpapers.tasks.prefill import prompts as module
from workingpapers.tasks.prefill.prompts import BATCH, Given, Passes, Problem, check, measure, once
from workingpapers.tasks.protocol import Budget, Conditions, load_task

TASK = load_task("prefill")
LENGTHS = [5, 40, 1, 12, 33, 60, 8, 21, 9, 2]  # a batch and two more


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKINGPAPERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WORKINGPAPERS_STORE", str(tmp_path / "runs.sqlite"))
    (tmp_path / "own.txt").write_text(tinyreader.lines())
    load_language_model.cache_clear()
    return tmp_path


def conditions(places):
    return Conditions("prefill", "standard", str(places / "own.txt"), "tinyreader:make")


def some(lengths=LENGTHS):
    return [tokens(1, n, seed=i)[0] for i, n in enumerate(lengths)]


def given(model=None):
    return Given(tiny() if model is None else model, some()[:BATCH], 0)


@pytest.mark.parametrize("name", list(TASK.entries))
def test_every_entry_gives_the_next_tokens_of_each_prompt_alone(name):
    start = given()
    passes = TASK.entries[name].fit(start, None)
    with torch.inference_mode():
        found, count, seconds = once(passes, some())
        for prompt, scores in zip(some(), found, strict=True):
            # 1e-4: the same sums in float32 in another order, through two layers.
            torch.testing.assert_close(scores, tiny()(prompt[None]).logits[0, -1], rtol=1e-4, atol=1e-4)
    first, rest = LENGTHS[:BATCH], LENGTHS[BATCH:]
    ordered = sorted(LENGTHS)
    expected = {
        "padding": len(first) * max(first) + len(rest) * max(rest),
        "length-sorted": BATCH * ordered[BATCH - 1] + len(rest) * ordered[-1],
        "one-at-a-time": sum(LENGTHS),
        "flattened": sum(LENGTHS),
        "prepacking": 3 * 60 + 2 * 9,  # 60, 40 + 12 + 8, 33 + 21 + 5 + 1 in rows of 60; then 9, 2 in rows of 9
    }
    assert count == expected[name]
    assert seconds > 0
    metrics = measure(lambda _: passes, Problem(start, some(), 2))
    assert metrics["tokens"] == count
    assert metrics["seconds"] > 0 < metrics["relative-seconds"]
    assert metrics["peak-memory"] >= 0


def test_prompts_are_those_of_the_seed_and_differ_in_length(places, monkeypatch):
    monkeypatch.setitem(
        TASK.settings,
        "standard",
        dataclasses.replace(TASK.settings["standard"], budgets={"quick": Budget("quick", 1, 40, 1, 1)}),
    )
    one, again, other = (module.load(conditions(places), seed) for seed in (0, 0, 1))
    assert len(one.prompts) == 40
    assert len(one.given.examples) == BATCH
    assert all(torch.equal(a, b) for a, b in zip(one.prompts, again.prompts, strict=True))
    lengths = sorted(len(p) for p in one.prompts)
    assert lengths[0] >= 2
    assert lengths[-1] <= tinyreader.LENGTH
    assert lengths[20] < lengths[-1] / 2
    assert lengths != sorted(len(p) for p in other.prompts)


def test_seconds_are_medians_in_turn_with_padding(monkeypatch):
    # 100 seconds at first, for the memory; then padding 10 and own 9, own 1 and padding 4, padding 20 and own 5.
    seconds, clock = [100, 10, 9, 1, 4, 20, 5], []
    for duration in seconds:
        clock += [0.0, float(duration)]
    monkeypatch.setattr(module.time, "perf_counter", iter(clock).__next__)
    model, calls = tiny(), []

    def run(prompts):
        calls.append(len(prompts))
        return torch.stack([model(p[None]).logits[0, -1] for p in prompts]), 7

    passes = Passes(lambda prompts: [list(range(len(prompts)))], run)
    found = measure(lambda _: passes, Problem(given(model), some()[:3], 3))
    assert found["seconds"] == 5
    assert found["relative-seconds"] == 0.25  # of 0.9, 0.25 and 0.25
    assert found["tokens"] == 7
    assert calls == [1, 3, 3, 3, 3]


def test_other_next_tokens_are_refused():
    model, prompts = tiny(), some()[:3]
    with torch.no_grad():
        right = [model(p[None]).logits[0, -1] for p in prompts]
        check(model, prompts, right)
        with pytest.raises(UserError, match=r"Prompt 0 of 5 tokens goes on with token \d+; processed alone, with \d+"):
            check(model, prompts, [-right[0], *right[1:]])
        with pytest.raises(UserError, match="Prompt 2"):
            check(model, prompts, [*right[:2], torch.full_like(right[2], torch.nan)])


@pytest.mark.parametrize("batches", [[[0, 1]], [[0, 1, 2, 2]], [[0, 1, 2, 3]]])
def test_every_prompt_must_be_there_once(batches):
    passes = Passes(lambda prompts: batches, lambda prompts: (torch.zeros(len(prompts), 4), 1))
    with pytest.raises(UserError, match="every prompt once"):
        once(passes, some()[:3])


@pytest.mark.slow
def test_a_model_and_a_file_of_ones_own_through_the_runner(places):
    board = try_("prefill", data=str(places / "own.txt"), model="tinyreader:make", seeds=1)
    rows = {row.entry: row for row in board.rows}
    assert set(rows) == set(TASK.entries)
    assert not any(row.failures for row in board.rows)
    assert rows["padding"].values["tokens"].mean > rows["prepacking"].values["tokens"].mean
    assert rows["prepacking"].paper == "prepacking"


def test_a_text_that_is_too_short(places):
    (places / "own.txt").write_text("too short")
    with pytest.raises(UserError, match="is too short"):
        module.load(conditions(places), 0)
    with pytest.raises(UserError, match="is too short"):  # before any run
        TASK.settings["standard"].prepare(conditions(places), [])


def test_a_column_of_labels_is_refused():
    with pytest.raises(UserError, match=r"label is 'text', but talks\.csv, read as text, is no table"):
        try_("prefill", data="talks.csv", label="text", listen=pytest.fail)


def test_importing_the_task_imports_nothing_heavy():
    code = "import sys, workingpapers.tasks.prefill; print(sorted({'numpy', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
