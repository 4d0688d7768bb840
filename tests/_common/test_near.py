from nnunet_ext._common.near import did_you_mean, near_matches

COMMANDS = ("nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_preprocess", "nnUNetv2_ensemble")


def test_typo_leads_to_the_one_name_that_is_clearly_best() -> None:
    assert near_matches("nnUNetv2_trian", COMMANDS) == ["nnUNetv2_train"]


def test_part_of_a_name_leads_to_the_name() -> None:
    assert near_matches("ensemble", COMMANDS) == ["nnUNetv2_ensemble"]


def test_case_does_not_count() -> None:
    assert near_matches("NNUNETV2_PREDICT", COMMANDS) == ["nnUNetv2_predict"]


def test_nothing_near_gives_no_sentence() -> None:
    assert did_you_mean("xyz", COMMANDS) == ""
    assert did_you_mean("xyz", ()) == ""
