"""What an entry returns is checked before it is scored."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from workingpapers.errors import UserError
from workingpapers.tasks.returned import check_returned, checked_probabilities


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "None"),
        (LinearSVC(), "a LinearSVC, which has no 'predict_proba'"),
        (LogisticRegression(), "a LogisticRegression, which has no 'classes_'"),  # not fitted
        (LogisticRegression, "the class LogisticRegression, which has no 'classes_'"),
    ],
)
def test_what_an_entry_returns_must_have_what_the_task_uses(returned, said):
    with pytest.raises(UserError) as caught:
        check_returned(returned, "a fitted classifier", "predict_proba", "classes_")
    expected = f"The entry returned {said}; it must return a fitted classifier with predict_proba and classes_."
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.full((3, 1), 0.5), r"shape \(3, 1\); needed: \(3, 2\)"),
        (np.full((1, 2), 0.5), r"shape \(1, 2\)"),
        (np.full(2, 0.5), r"shape \(2,\)"),
        (None, r"shape \(\)"),
        ([[0.5, 0.5], [0.5, np.nan], [0.5, 0.5]], "returned nan; probabilities are from 0 to 1"),
        ([[0.5, 0.5], [-2.5, 3.5], [0.5, 0.5]], "returned -2.5; probabilities"),
        ([[0.5, 0.5], [0.9, 0.9], [0.5, 0.5]], "a row that sums to 1.8"),
        (np.zeros((3, 2), int), "a row that sums to 0"),
    ],
)
def test_what_are_no_probabilities_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        checked_probabilities(given, (3, 2))
    rounded = np.array([[2, 1], [1, 0], [0.1, 0.9]], np.float16) / np.array([[3], [1], [1]], np.float16)
    assert checked_probabilities(rounded.tolist(), (3, 2)).tolist() == rounded.tolist()
