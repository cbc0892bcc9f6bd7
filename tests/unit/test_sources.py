"""Problems from files: keys, levels, answers, held-out shares, and what is refused."""

import json
from collections import Counter

import pytest

from expo_ray.config.errors import DataError
from expo_ray.config.schema import DataConfig, VerifierConfig
from expo_ray.data.sources import Problems


def write(tmp_path, *records, name="problems.jsonl"):
    file = tmp_path / name
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return file


def config(file, **changes) -> DataConfig:
    return DataConfig(**({"name": "jsonl", "path": str(file), "held_out_share": 0.0} | changes))


def load(file, held_out=False, seed=0, **changes):
    return problems_of(config(file, **changes), held_out, seed)


def problems_of(data, held_out=False, seed=0):
    problems = Problems(data, seed)
    return problems.held_out if held_out else problems.training


def problem(**changes):
    return {"problem": "1+1?", "answer": "2", "solution": "1+1=2", "level": "Level 3", "type": "Sums"} | changes


def test_a_record_becomes_a_problem(tmp_path):
    (found,) = load(write(tmp_path, problem(unique_id="a/1")))
    assert (found.uid, found.question, found.answers, found.solution) == ("a/1", "1+1?", ("2",), "1+1=2")
    assert (found.level, found.kind) == (3, "Sums")


def test_meta_holds_every_column_that_no_key_took(tmp_path):
    tests = {"inputs": ["1\n"], "outputs": ["2\n"]}
    (found,) = load(write(tmp_path, problem(unique_id="a/1", tests=tests, source="contest", hard=None)))
    assert found.meta == {"unique_id": "a/1", "tests": tests, "source": "contest", "hard": None}
    (kept,) = load(write(tmp_path, problem(level=2), name="other.jsonl"), level_key=None)
    assert kept.meta == {"level": 2}


def test_problems_with_one_uid_get_different_ones_and_the_line_is_reported(tmp_path, capsys):
    file = write(tmp_path, *[problem(unique_id=uid) for uid in ("a", "b", "a", "a-4", "a")])
    assert [p.uid for p in load(file)] == ["a", "b", "a-3", "a-4", "a-5"]
    told = capsys.readouterr().err
    assert f"2 problems repeat the uid of another, first {file} line 3 ('a', as in {file} line 1)" in told


def test_a_uid_of_the_file_does_not_meet_one_that_is_made_up(tmp_path):
    without = {key: value for key, value in problem().items() if key != "unique_id"}
    clashing = write(tmp_path, problem(unique_id="problems-2"), without)
    assert [p.uid for p in load(clashing)] == ["problems-2", "problems-2-2"]
    again = write(tmp_path, problem(unique_id="a"), problem(unique_id="a-3"), problem(unique_id="a"))
    assert [p.uid for p in load(again)] == ["a", "a-3", "a-3-3"]


@pytest.mark.parametrize(("value", "level"), [("Level 5", 5), (5, 5), ("5", 5), ("level 1", 1), ("Level ?", None)])
def test_levels_as_data_sets_write_them(tmp_path, value, level):
    assert load(write(tmp_path, problem(level=value)))[0].level == level


@pytest.mark.parametrize("value", ["hard", 7, "Level 55", 0, 2.5])
def test_an_unreadable_level_is_refused(tmp_path, value):
    with pytest.raises(DataError, match=r"problems.jsonl line 2: key 'level'.*data.level_key=null"):
        load(write(tmp_path, problem(), problem(level=value)))


@pytest.mark.parametrize(("value", "answers"), [("2", ("2",)), (2, ("2",)), (0.5, ("0.5",)), (["1", 2], ("1", "2"))])
def test_answers_as_text_number_or_list(tmp_path, value, answers):
    assert load(write(tmp_path, problem(answer=value)))[0].answers == answers


def test_gsm8k_keeps_the_answer_behind_the_hashes(tmp_path):
    record = {"question": "How many?", "answer": "It is 2*3=<<2*3=6>>6 eggs.\n#### 1,006"}
    keys = dict(question_key="question", solution_key="answer", level_key=None, kind_key=None, answer_from="hashes")
    (found,) = load(write(tmp_path, record), **keys)
    assert found.answers == ("1,006",)
    assert found.solution == "It is 2*3=6 eggs.\n#### 1,006"
    assert (found.level, found.uid) == (None, "problems-1")


def test_an_answer_is_the_last_box_where_the_record_has_none_of_its_own(tmp_path):
    solution = r"First \boxed{3}, then \boxed{\frac{1}{2}}."
    own, boxed = problem(solution=solution), problem(solution=solution)
    del boxed["answer"]
    assert load(write(tmp_path, own), answer_from="boxed")[0].answers == ("2",)
    assert load(write(tmp_path, boxed), answer_from="boxed")[0].answers == (r"\frac{1}{2}",)


def test_a_few_records_without_answer_are_left_out_and_many_are_refused(tmp_path):
    few = [problem()] * 199 + [problem(answer="")]
    assert len(load(write(tmp_path, *few))) == 199
    with pytest.raises(DataError, match=r"line 2: key 'answer' has nothing in it \(1 of 2 records"):
        load(write(tmp_path, problem(), problem(answer=" ")))


def test_levels_choose_and_a_wrong_choice_says_what_there_is(tmp_path):
    file = write(tmp_path, *[problem(level=level) for level in (1, 2, 2, 5)])
    assert len(load(file, levels=[2, 5])) == 3
    with pytest.raises(DataError, match=r"data.levels=\[4\].*levels \[1, 2, 5\]"):
        load(file, levels=[4])
    with pytest.raises(DataError, match=r"lacks the level key 'grade'"):
        load(file, levels=[4], level_key="grade")


def test_training_and_held_out_share_have_no_problem_in_common_and_do_not_change_with_the_seed(tmp_path):
    file = write(tmp_path, *[problem(unique_id=str(i)) for i in range(50)])
    training = [p.uid for p in load(file, held_out_share=0.2)]
    held_out = [p.uid for p in load(file, held_out=True, held_out_share=0.2)]
    assert (len(training), len(held_out)) == (40, 10)
    assert sorted(training + held_out, key=int) == [str(i) for i in range(50)]
    assert [p.uid for p in load(file, held_out=True, held_out_share=0.2, seed=9)] == held_out


def test_an_eval_file_is_held_out_whole(tmp_path):
    file, other = write(tmp_path, *[problem()] * 10), write(tmp_path, *[problem()] * 3, name="eval.jsonl")
    changes = dict(eval_path=str(other), held_out_share=0.5)
    assert (len(load(file, **changes)), len(load(file, held_out=True, **changes))) == (10, 3)


def test_max_problems_is_a_seeded_sample_in_file_order(tmp_path):
    file = write(tmp_path, *[problem(unique_id=str(i)) for i in range(30)])
    sample = [int(p.uid) for p in load(file, max_problems=5)]
    assert len(sample) == 5 and sample == sorted(sample)
    assert sample == [int(p.uid) for p in load(file, max_problems=5)]
    assert sample != [int(p.uid) for p in load(file, max_problems=5, seed=1)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"problem": \n', "line 1 is not JSON"),
        ("[1, 2]\n", "line 1 is not a JSON object but list"),
        ('{"answer": "1"}\n', "line 1 lacks the key 'problem'"),
        ('{"problem": "x", "answer": "1"}\n\n{"problem": "x"}\n', "line 3 lacks the key 'answer'"),
        ('{"problem": 5, "answer": "1"}\n', "key 'problem' is not a text"),
        ('{"problem": "x", "answer": {"a": 1}}\n', "key 'answer' is {'a': 1}"),
        ('{"problem": "x", "answer": true}\n', "key 'answer' is True"),
        ('{"problem": "x", "answer": "1", "solution": 3}\n', "key 'solution' is not a text"),
        ("[" * 100_000 + "\n", "line 1 is not JSON"),
    ],
)
def test_a_wrong_file_is_refused_by_file_line_and_key(tmp_path, text, words):
    file = tmp_path / "wrong.jsonl"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        load(file)
    assert words in str(caught.value) and str(file) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data.path=.*nowhere.jsonl does not exist"):
        load(tmp_path / "nowhere.jsonl")
    file = tmp_path / "binary.jsonl"
    file.write_bytes(b'{"problem": "\xff\xfe"}\n')
    with pytest.raises(DataError, match="UTF-8"):
        load(file)
    with pytest.raises(DataError, match=r"data=jsonl needs data\.path=FILE"):
        problems_of(DataConfig(name="jsonl"))


def test_the_toy_task_needs_no_file():
    data = DataConfig(name="toy", levels=[1, 5], max_problems=20)
    found = problems_of(data)
    assert Counter(p.level for p in found) == {1: 10, 5: 10}
    held_out = {p.question for p in problems_of(data, True) if p.level == 5}
    assert held_out and not held_out & {p.question for p in found}


def test_the_real_data_sets(shared):
    keys = dict(answer_from="boxed", eval_path=str(shared / "data/math_test.jsonl"))
    train = load(shared / "data/math_train.jsonl", **keys)
    assert len(train) == 7498  # of 7,500: two have an empty box
    counted = Counter(p.level for p in load(shared / "data/math_train.jsonl", held_out=True, **keys))
    assert counted == {1: 437, 2: 894, 3: 1131, 4: 1214, 5: 1324}


def test_a_question_longer_than_the_context_is_refused_before_anything_starts(tmp_path):
    from expo_ray.config.compose import compose_config
    from expo_ray.messages import Problem
    from expo_ray.preflight.inputs import check_longest
    from expo_ray.preflight.plan import make_plan

    config = compose_config(["experiment=demo"])
    check_longest([Problem("short", "3+4", ("7",))], make_plan(config))
    with pytest.raises(DataError, match=r"problem long .* at least 400 tokens .* context .* is 128"):
        check_longest([Problem("short", "3+4", ("7",)), Problem("long", "3+4+" * 100, ("7",))], make_plan(config))


def test_a_column_names_each_records_task(tmp_path):
    file = write(tmp_path, problem(by="choice"), problem(by=None), problem(by="python_tests"), problem())
    assert [p.task for p in load(file, verifier_key="by")] == ["choice", "", "python_tests", ""]
    wrong = write(tmp_path, problem(by="choice"), problem(by="chioce"), name="wrong.jsonl")
    with pytest.raises(
        DataError, match=r"wrong.jsonl line 2: key 'by'=chioce is neither a task; did you mean 'choice'"
    ):
        load(wrong, verifier_key="by")


def test_golds_of_mixed_tasks_are_checked_by_their_own(tmp_path):
    records = [problem(by="math", answer=r"\boxed{7}"), problem(by="choice", answer="(B) 7 {")]
    mixed = Problems(config(write(tmp_path, *records), verifier_key="by"), 0, VerifierConfig(name="choice"))
    assert [p.answers for p in mixed.training] == [("7",), ("(B) 7 {",)]
