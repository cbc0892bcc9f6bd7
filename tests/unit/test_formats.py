"""The table of what people bring: each file format and record shape is read to the same problems, or refused in one
sentence. Every file is built here."""

import bz2
import csv
import gzip
import io
import json
import os
import tracemalloc
from dataclasses import replace
from threading import Thread

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from expo_ray.config.compose import compose_config
from expo_ray.config.errors import ConfigError, DataError
from expo_ray.config.schema import DataConfig
from expo_ray.data.sources import Problems, parts_of
from expo_ray.prompts.loading import at_most_per_level
from expo_ray.verify import read_items

RECORDS = [
    {"question": "Was ist 1+1? „Zwei“", "answer": "2"},
    {"question": 'A comma, a "quote" and\nanother line', "answer": "007"},
    {"question": "No answer but a word", "answer": "None"},
]
"""Text outside ASCII, what CSV must quote, and answers that a table's type inference would change."""
KEYS = dict(solution_key=None, level_key=None, kind_key=None)


def load(path, held_out=False, **changes):
    data = DataConfig(
        **(dict(name="file", path=path and str(path), question_key="question", held_out_share=0.0) | KEYS | changes)
    )
    problems = Problems(data, 0)
    return problems.held_out if held_out else problems.training


def pairs(problems):
    return [(problem.question, problem.answers) for problem in problems]


EXPECTED = [(record["question"], (record["answer"],)) for record in RECORDS]


def table(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["question", "answer"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return text.getvalue().encode()


def arrow(write) -> bytes:
    sink = io.BytesIO()
    write(pa.Table.from_pylist(RECORDS), sink)
    return sink.getvalue()


def stream(rows, sink):
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)


LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
FILES = {
    "a.jsonl": LINES.encode(),
    "a.ndjson": LINES.encode(),
    "a.txt": LINES.encode(),
    "no_suffix": LINES.encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n").encode(),
    "no_last_end.jsonl": LINES.rstrip().encode(),
    "lines_inside.json": LINES.encode(),
    "array.json": json.dumps(RECORDS).encode(),
    "indented.json": json.dumps(RECORDS, indent=2).encode(),
    "object.json": json.dumps({"version": 1, "tags": ["x"], "data": RECORDS}).encode(),
    "a.csv": table(","),
    "a.tsv": table("\t"),
    "a.parquet": arrow(pa.parquet.write_table),
    "parquet_without_suffix": arrow(pa.parquet.write_table),
    "stream.arrow": arrow(stream),
    "file.arrow": arrow(lambda rows, sink: pa.feather.write_feather(rows, sink, compression="uncompressed")),
    "a.feather": arrow(pa.feather.write_feather),
}
TEXTS = [name for name in FILES if name.split(".")[-1] not in ("parquet", "arrow", "feather", "parquet_without_suffix")]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("pack", [("", bytes), (".gz", gzip.compress), (".zst", zstd), (".bz2", bz2.compress)])
def test_every_format_gives_the_same_problems_plain_and_compressed(tmp_path, name, pack):
    file = tmp_path / f"{name}{pack[0]}"
    file.write_bytes(pack[1](FILES[name]))
    found = load(file)
    assert pairs(found) == EXPECTED
    assert found[2].uid == f"{name.split('.')[0]}-" + ("5" if name.endswith("sv") else "3"), "the number of its line"


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_every_text_may_begin_with_a_byte_order_mark(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(FILES[name].decode().encode(encoding))
    assert pairs(load(tmp_path / name)) == EXPECTED


def test_a_compressed_file_without_the_suffix_is_known_by_its_bytes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(zstd(LINES.encode()))
    assert pairs(load(tmp_path / "a.jsonl")) == EXPECTED


def test_folders_and_globs_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "b.csv").write_bytes(FILES["a.csv"])
    (tmp_path / "data" / "a.parquet").write_bytes(FILES["a.parquet"])
    (tmp_path / "data" / "deep" / "c.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "data" / "README.md").write_text("not data")
    (tmp_path / "data" / ".cache").mkdir()
    (tmp_path / "data" / ".cache" / "x.jsonl").write_text("{}")
    whole = load(tmp_path / "data")
    assert pairs(whole) == EXPECTED * 3
    assert [problem.uid for problem in whole][::3] == ["a-1", "b-2", "c-1"]
    assert pairs(load(tmp_path / "data" / "*.c*")) == EXPECTED
    assert pairs(load(tmp_path / "**" / "*.jsonl.gz")) == EXPECTED


def test_a_folder_with_a_folder_for_each_split_is_not_read_as_one(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / "data" / split / "0000.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"holds several splits \(\w+/0000.jsonl and \w+/0000.jsonl\): give data.hub="):
        load(tmp_path / "data")
    assert pairs(load(tmp_path / "data" / "train")) == EXPECTED


def test_saved_data_sets_and_a_local_folder_as_hub(tmp_path):
    rows = Dataset.from_list(RECORDS)
    rows.save_to_disk(str(tmp_path / "saved"))
    assert pairs(load(tmp_path / "saved")) == EXPECTED
    for held_out in (False, True):  # both would be the whole of it
        with pytest.raises(DataError, match=r"cannot be loaded \(it has no splits, so give data.path="):
            load(None, held_out, hub=str(tmp_path / "saved"))
    rows.select([2, 0]).save_to_disk(str(tmp_path / "chosen"))  # with an index beside its rows
    assert pairs(load(tmp_path / "chosen")) == [EXPECTED[2], EXPECTED[0]]
    DatasetDict(train=rows, test=rows.select([1])).save_to_disk(str(tmp_path / "both"))
    as_hub = dict(hub=str(tmp_path / "both"))
    assert pairs(load(None, **as_hub)) == EXPECTED
    assert pairs(load(None, held_out=True, **as_hub)) == [EXPECTED[1]]
    with pytest.raises(DataError, match=r"data.hub=.*both split dev cannot be loaded .*train, test"):
        load(None, **as_hub, split="dev")
    with pytest.raises(DataError, match=r"is a saved data set with splits: give data.hub="):
        load(tmp_path / "both")


def test_a_local_folder_in_the_hubs_form(tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "data"
    folder.mkdir(parents=True)
    (folder / "train-00000-of-00001.parquet").write_bytes(FILES["a.parquet"])
    (folder / "test-00000-of-00001.parquet").write_bytes(FILES["a.parquet"])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    as_hub = dict(hub=str(tmp_path / "mine"))
    assert pairs(load(None, **as_hub)) == pairs(load(None, held_out=True, **as_hub)) == EXPECTED
    with pytest.raises(DataError, match=r"holds several splits \(.*\): give data.hub="):
        load(tmp_path / "mine")


VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": "1+1? Answer after ####."}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 7},
}
SHAPES = {
    # the record, settings, and what the problem has
    "nested keys": (
        {"q": {"text": "1+1?"}, "a": {"b": {"c": 2}}, "extra_info": {"index": 7}},
        dict(question_key="q.text", answer_key="a.b.c", uid_key="extra_info.index"),
        dict(question="1+1?", answers=("2",), uid="7"),
    ),
    "a key with a dot in it": ({"q.text": "1+1?", "answer": 2}, dict(question_key="q.text"), dict(question="1+1?")),
    "verl, set by hand": (
        VERL,
        dict(question_key="prompt", answer_key="reward_model.ground_truth", kind_key="ability"),
        dict(question="1+1? Answer after ####.", answers=("2",), kind="math"),
    ),
    "verl": (
        VERL,
        dict(preset="verl"),
        dict(answers=("2",), turns=(("user", "1+1? Answer after ####."),), kind="math"),
    ),
    "verl, recognised": (VERL, dict(preset="auto"), dict(answers=("2",), kind="math")),
    "OpenRLHF": (
        {"input": "1+1?", "label": "2", "datasource": "x"},
        dict(preset="auto"),
        dict(question="1+1?", answers=("2",), meta={"input": "1+1?", "label": "2", "datasource": "x"}),
    ),
    "OpenRLHF with messages": (
        {
            "context_messages": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "1+1?"}],
            "label": 2,
        },
        dict(preset="openrlhf"),
        dict(question="1+1?", answers=("2",), turns=(("system", "Be terse."), ("user", "1+1?"))),
    ),
    "TRL": (
        {"prompt": [{"role": "user", "content": "1+1?"}], "ground_truth": "2"},
        dict(preset="auto"),
        dict(question="1+1?", answers=("2",), turns=(("user", "1+1?"),)),
    ),
    "TRL with a boxed solution": (
        {"prompt": "1+1?", "solution": r"It is \boxed{2}."},
        dict(preset="trl"),
        dict(question="1+1?", answers=("2",), solution=r"It is \boxed{2}."),
    ),
    "TRL with a bare solution": (
        {"prompt": "1+1?", "solution": "2"},
        dict(preset="trl"),
        dict(question="1+1?", answers=("2",), solution=None),
    ),
    "GSM8K, recognised": (
        {"question": "1+1?", "answer": "It is 2.\n#### 2"},
        dict(preset="auto"),
        dict(answers=("2",), solution="It is 2.\n#### 2"),
    ),
    "MATH, recognised": (
        {"problem": "1+1?", "solution": r"\boxed{2}", "level": "Level 3", "type": "Algebra"},
        dict(preset="auto"),
        dict(answers=("2",), level=3, kind="Algebra"),
    ),
    "a preset and a key of one's own": (
        VERL | {"gold": "3"},
        dict(preset="verl", answer_key="gold"),
        dict(question="1+1? Answer after ####.", answers=("3",)),
    ),
    "messages in parts": (
        {
            "question": [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}],
            "answer": 2,
        },
        {},
        dict(question="1+1?", answers=("2",)),
    ),
    "answers of many types": (
        {"question": "?", "answer": ["a", 1, 0.5, 1e-5]},
        {},
        dict(answers=("a", "1", "0.5", "0.00001")),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_shape_of_record_becomes_a_problem(tmp_path, name, suffix):
    record, settings, expected = SHAPES[name]
    if suffix == "parquet" and name == "answers of many types":
        pytest.skip("a column of Parquet has one type")
    file = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist([record]), file)
    else:
        file.write_text(json.dumps(record) + "\n")
    (found,) = load(file, **settings)
    assert {key: getattr(found, key) for key in expected} == expected


def test_a_preset_says_what_it_took(tmp_path):
    file = tmp_path / "train.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([VERL] * 3), file)
    problems = Problems(DataConfig(name="file", path=str(file), preset="auto"), 0)
    assert len(problems.training) + len(problems.held_out) == 3
    assert problems.taken == ["train: verl columns: question prompt, answer reward_model.ground_truth, kind ability"]


BAD_LINE = '{"question": "half a \\ud83d pair", "answer": "1"}\n'
CHAT = '{{"question": {messages}, "answer": "1"}}\n'
REFUSED = {
    # the file's name and content, and the words of the sentence
    "surrogate in a question": ("a.jsonl", LINES + BAD_LINE, r"line 4: key 'question' has half of .* \(\\ud83d\)"),
    "surrogate in an answer": ("a.json", r'[{"question": "?", "answer": "\udc00"}]', "record 1: key 'answer' has"),
    "an answer that is not a number": ("a.jsonl", '{"question": "?", "answer": NaN}', "line 1: key 'answer' is nan"),
    "no answer in a list": ("a.jsonl", '{"question": "?", "answer": [1, null]}', r"line 1: key 'answer' is \[1, N"),
    "a row that is too short": ("a.csv", "question,answer\n1+1?,2\n1+1?\n", "line 3 has 1 values for 2 columns"),
    "a row that is too long": ("a.tsv", "question\tanswer\n1\t2\t3\n", "line 2 has 3 values for 2 columns"),
    "two columns of one name": ("a.csv", "question,question\n1,2\n", "line 1: its column names"),
    "a quote that is not closed": ("a.csv", 'question,answer\n"1+1?,2\n', "line 2 is not CSV"),
    "an empty question": ("a.csv", "question,answer\n,2\n", "line 2: key 'question' is not a text, or is empty"),
    "other columns": ("a.csv", "question;answer\n1;2\n", r"line 2 lacks .* \(it has: question;answer\)"),
    "no records": ("a.json", "[]", "is empty"),
    "a number without end": ("a.jsonl", f'{LINES}{{"question": "?", "answer": {"1" * 5000}}}', "line 4 is not JSON"),
    "two lists": ("a.json", '{"a": [{"x": 1}], "b": [{"x": 1}]}', r"holds several lists of records \(a, b\)"),
    "a number": ("a.json", "5", "is int, not an array of JSON objects"),
    "texts": ("a.json", '["x"]', "record 1 is not a JSON object but str"),
    "not JSON": ("a.json", '[{"question": ', "is not JSON"),
    "not Parquet": ("a.parquet", "PAR1 but no more", r"data.path=.*a.parquet cannot be read \("),
    "not Arrow": ("a.arrow", "hello", r"data.path=.*a.arrow cannot be read \("),
    "not gzip to its end": ("a.jsonl.gz", gzip.compress(LINES.encode())[:-20], r"a.jsonl.gz cannot be read \("),
    "not zstd to its end": ("a.jsonl.zst", zstd(LINES.encode() * 99)[:-20], r"data.path=.*a.jsonl.zst cannot be read"),
    "an Excel file": ("a.xlsx", b"PK\x03\x04\x14\x00\x06\x00\xff\xfe", r"line 1 is not UTF-8 text .*: give "),
    "a tool": ("a.jsonl", CHAT.format(messages='[{"role": "tool", "content": "x"}]'), "write each message as role"),
    "an image": (
        "a.jsonl",
        CHAT.format(messages='[{"role": "user", "content": [{"type": "image", "url": "x"}]}]'),
        "write each message as role .* and content, which is text",
    ),
    "an answer among the messages": (
        "a.jsonl",
        CHAT.format(messages='[{"role": "user", "content": "?"}, {"role": "assistant", "content": "1"}]'),
        "key 'question' ends with a message of the assistant: end it with the user's question",
    ),
    "no messages": ("a.jsonl", CHAT.format(messages="[]"), "key 'question' asks nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path, name):
    file, content, words = REFUSED[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path / file)
    said = str(caught.value)
    assert str(tmp_path / file) in said and "\n" not in said and ": " in said and len(said) < 500


@pytest.mark.parametrize("preset", ["auto", "verl", "trl", "openrlhf"])
def test_a_preset_that_finds_no_columns_says_what_it_looks_for(tmp_path, preset):
    (tmp_path / "a.jsonl").write_text('{"text": "1+1?"}\n')
    with pytest.raises(
        DataError, match=rf"data.preset={preset} looks for .*prompt.* \(it has: text\): set data.preset=none"
    ):
        load(tmp_path / "a.jsonl", preset=preset)


def test_a_fault_in_the_held_out_part_is_found_before_anything_starts(tmp_path):
    """Whichever line is wrong, training's own problems cannot be had."""
    for wrong in range(10):
        lines = [json.dumps(RECORDS[0])] * 10
        lines[wrong] = '{"question": "?"}'
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        with pytest.raises(DataError, match=rf"line {wrong + 1} lacks the key 'answer'"):
            load(tmp_path / "a.jsonl", held_out_share=0.5)


def test_a_pipe_is_read_like_a_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_bytes(LINES.encode()))
    writer.start()
    assert pairs(load(pipe)) == EXPECTED
    writer.join(timeout=10)


def test_absent_files_are_named(tmp_path):
    for name, words in (("nowhere.csv", "does not exist"), ("*.csv", "matches no file"), ("", "is a folder without")):
        with pytest.raises(DataError, match=rf"data.path=.*{words}"):
            load(tmp_path / name)


def test_many_records_are_not_kept_twice(tmp_path):
    """A Parquet file is read in batches: the peak is that of its problems, not a multiple of it."""
    pa.parquet.write_table(
        pa.Table.from_pylist([VERL | {"data_source": f"{n}"} for n in range(3_000)]), tmp_path / "a.parquet"
    )
    tracemalloc.start()
    found = load(tmp_path / "a.parquet", preset="verl")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 3_000
    assert peak < 1.3 * held


def source(tmp_path, name, count, **fields):
    (tmp_path / f"{name}.jsonl").write_text(
        "".join(json.dumps({"question": f"{name} {i}?", "answer": i} | fields) + "\n" for i in range(count))
    )
    return str(tmp_path / f"{name}.jsonl")


def test_several_sources_keep_their_names_weights_and_own_keys(tmp_path):
    first, second = source(tmp_path, "first", 10), tmp_path / "second.csv"
    second.write_text("q,a\n" + "".join(f"second {i}?,{i}\n" for i in range(4)))
    entries = [dict(path=first, weight=3), dict(path=str(second), name="other", question_key="q", answer_key="a")]
    data = DataConfig(name="file", question_key="question", held_out_share=0.2, sources=entries, **KEYS)
    problems = Problems(data, 0)
    assert {(p.source, p.weight) for p in problems.training} == {("first", 3.0), ("other", 1.0)}
    counts = [sum(p.source == name for p in problems.training) for name in ("first", "other")]
    assert counts == [8, 3] and len(problems.held_out) == 3
    assert {p.uid.partition("/")[0] for p in problems.held_out} == {"first", "other"}
    uids = [p.uid for p in [*problems.training, *problems.held_out]]
    assert len(set(uids)) == len(uids) == 14


def test_several_evaluation_sets_are_read_whole_and_named(tmp_path):
    entries = [dict(path=source(tmp_path, "easy", 3)), dict(path=source(tmp_path, "hard", 2), name="very hard")]
    data = DataConfig(
        name="file", path=source(tmp_path, "own", 5), question_key="question", eval_sources=entries, **KEYS
    )
    problems = Problems(data, 0)
    assert len(problems.training) == 5, "no share of it is held out"
    assert [p.source for p in problems.held_out] == ["easy"] * 3 + ["very hard"] * 2


def test_generated_problems_are_evaluated_on_a_file_if_one_is_given(tmp_path):
    own = source(tmp_path, "own", 5)
    held_out = Problems(DataConfig(name="toy", eval_path=own, question_key="question", **KEYS), 0).held_out
    assert [p.question for p in held_out] == [f"own {i}?" for i in range(5)]


def test_a_source_with_held_out_problems_of_its_own_is_evaluated_on_those(tmp_path):
    """As `evaluate` makes evaluation sets of a training run's sources."""
    entries = [dict(path=source(tmp_path, "trained", 5), eval_path=source(tmp_path, "kept", 2))]
    data = DataConfig(name="file", question_key="question", eval_sources=entries, **KEYS)
    assert [p.question for p in Problems(data, 0).held_out] == ["kept 0?", "kept 1?"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (dict(weight=1), "names no data: give path"),
        (dict(path="a", wieght=1), "'wieght' is not a key of an entry; did you mean 'weight'"),
        (dict(path="a", weight=0), "weight=0 is not a number above 0"),
        (dict(path="a", levels="many"), "data.sources: "),
        (dict(path="a", resample="failing"), "'resample' is not a key of an entry"),
    ],
)
def test_a_wrong_source_is_refused(entry, words):
    with pytest.raises(ConfigError, match=words):
        parts_of(DataConfig(name="file", sources=[entry]), "sources")


def test_two_sources_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two entries called 'a': give each a name"):
        parts_of(DataConfig(name="file", sources=[dict(path="x/a.csv"), dict(path="y/a.jsonl")]), "sources")


@pytest.mark.parametrize("entry", [dict(path="x/5.jsonl"), dict(path="a.jsonl", name="all")])
@pytest.mark.parametrize("key", ["sources", "eval_sources"])
def test_a_source_with_the_name_of_a_level_is_refused(key, entry):
    """Tables and the report would show the pass@k of its held-out problems as that level's."""
    with pytest.raises(ConfigError, match=r"called '(5|all)', as a level is in the tables: give another name"):
        parts_of(DataConfig(name="file", **{key: [entry]}), key)


def test_sources_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = "data.sources=[{path: a.jsonl, weight: 2}, {path: 'b c.csv'}]"
    config = compose_config(["model.path=x", "data=file", written])
    assert [entry["path"] for entry in config.data.sources] == [f"{tmp_path}/a.jsonl", f"{tmp_path}/b c.csv"]
    assert [part.preset for part in parts_of(config.data, "sources")] == ["auto", "auto"]


def test_each_evaluation_set_keeps_its_share_under_a_limit(tmp_path):
    entries = [dict(path=source(tmp_path, "large", 50)), dict(path=source(tmp_path, "small", 3))]
    data = DataConfig(name="file", question_key="question", eval_sources=entries, **KEYS)
    kept = at_most_per_level(Problems(data, 0).held_out, 2)
    assert [p.source for p in kept] == ["large"] * 2 + ["small"] * 2


def test_generated_problems_are_chosen_by_their_pass_rates_too(tmp_path):
    everything = Problems(DataConfig(name="toy", max_problems=10), 0).training
    rates = tmp_path / "rates.jsonl"
    rates.write_text("".join(json.dumps({"uid": p.uid, "pass_rate": n / 9}) + "\n" for n, p in enumerate(everything)))
    data = DataConfig(name="toy", max_problems=10, pass_rates=str(rates), pass_rate=[0.0, 0.5])
    assert Problems(data, 0).training == [replace(p, pass_rate=n / 9) for n, p in enumerate(everything[:5])]


def test_an_empty_response_in_a_table_is_verified_like_another(tmp_path):
    (tmp_path / "a.csv").write_text('response,answer\n"",3\n\\boxed{3},3\n')
    assert [item[0] for item in read_items(tmp_path / "a.csv", skip_bad=False)[1]] == ["", "\\boxed{3}"]


def test_pass_rates_may_stand_beside_the_text_of_their_question(tmp_path):
    file, rates = source(tmp_path, "own", 2), tmp_path / "rates.jsonl"
    lines = [{"uid": p.uid, "question": p.question, "pass_rate": i} for i, p in enumerate(load(file))]
    rates.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [p.question for p in load(file, pass_rates=str(rates), pass_rate=[0.0, 0.5])] == ["own 0?"]


def test_problems_are_chosen_by_their_pass_rates(tmp_path):
    file, rates = source(tmp_path, "own", 6), tmp_path / "pass_rates.jsonl"
    whole = load(file)
    from expo_ray.data.records import fingerprint

    lines = [{"question": fingerprint(p), "uid": "elsewhere", "pass_rate": i / 4} for i, p in enumerate(whole[:5])]
    rates.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = load(file, pass_rates=str(rates), pass_rate=[0.0, 0.25])
    assert [(p.question, p.pass_rate) for p in chosen] == [("own 0?", 0.0), ("own 1?", 0.25)]
    problems = Problems(
        DataConfig(
            name="file",
            path=file,
            question_key="question",
            held_out_share=0.0,
            pass_rates=str(rates),
            pass_rate=[0.5, 1.0],
            **KEYS,
        ),
        0,
    )
    assert len(problems.training) == 3
    assert problems.taken == ["3 of 6 problems have a pass rate in [0.5, 1] (1 have none)"]
    by_uid = tmp_path / "mine.csv"
    by_uid.write_text("uid,pass_rate\nown-2,0.1\nown-3,0.9\n")
    assert [p.uid for p in load(file, pass_rates=str(by_uid), pass_rate=[0.0, 0.25])] == ["own-2"]
    with pytest.raises(DataError, match=r"leaves no problem: 0 of 6"):
        load(file, pass_rates=str(by_uid), pass_rate=[0.3, 0.4])
    by_uid.write_text("uid,pass_rate\nown-2,many\n")
    with pytest.raises(DataError, match=r"mine.csv line 2: .* is not a problem's pass rate"):
        load(file, pass_rates=str(by_uid))
