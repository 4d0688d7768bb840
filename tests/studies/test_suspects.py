"""What a list of suspects is worth."""

import pandas as pd

from studies.suspects import judged


def test_names_are_compared_with_the_wrong_cases_that_were_trained_on() -> None:
    named = pd.DataFrame(
        {
            "case": ["a", "a", "b", "c"],
            "label": ["liver", "tumour", "tumour", "tumour"],
            "kind": ["doubtful", "missing", "missing", "missing"],
        }
    )
    row = judged(named, training=set("abcdef"), noisy=set("abdexyz"))
    assert row["wrong"] == 4
    assert row["named"] == 3
    assert row["precision"] == "0.67"
    assert row["recall"] == "0.50"
    assert row["mostly"] == "missing tumour"


def test_nothing_is_claimed_where_nobody_is_named_and_nothing_is_wrong() -> None:
    row = judged(pd.DataFrame(columns=["case", "label", "kind"]), set("abc"), set())
    assert (row["named"], row["precision"], row["recall"], row["mostly"]) == (0, "", "", "")
