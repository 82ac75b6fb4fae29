"""Files, fields and settings that nobody meant: read, or refused with a message that names what is wrong."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import resource

import nasty
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers_for_tests
from hypothesis import example, given
from hypothesis import strategies as st

from core import fact_lists, facts, patch_file, prompt_lists, typed
from core.errors import MOST, ExpertScopeError, InputError
from core.requests import Fact, ModelSpec, TraceRequest
from core.study.settings import StudySettings

COLUMNS = (
    "case_id", "prompt", "subject", "target_true", "target_new", "relation_id", "relation", "template", "occurrence",
    "foil_auto", "relation_prefix", "requested_rewrite", "attribute",
)  # fmt: skip
GOOD = {"case_id": 1, "prompt": "{} is in", "subject": "Rome", "target_true": "Italy", "target_new": "Spain"}
RECORDS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(COLUMNS), st.one_of(nasty.json_values, st.just({"str": "x"})), max_size=5),
        st.booleans(),
    ).map(lambda pair: (GOOD if pair[1] else {}) | pair[0]),
    min_size=1, max_size=3,
)  # fmt: skip
DIGITS = "9" * 5000
DEEP = "[" * 960 + "]" * 960
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


def read_or_refused(content: bytes, name: str) -> list[Fact]:
    """The facts; none where the file is refused, then with its name and a short message."""
    try:
        found = facts.read(content, name)
    except InputError as error:
        assert error.field in ("facts", "foil") and name in error.what
        assert len(str(error)) <= 2 * MOST + 1
        return []
    for fact in found:
        assert fact.prompt.strip() and fact.subject.strip() and fact.true.strip()
        assert isinstance(fact.case_id, int) and fact.case_id >= 0
    return found


def kept(found: list[Fact]) -> None:
    """What was read can be written in every format and read back."""
    for suffix in (".jsonl", ".csv", ".parquet"):
        assert facts.read(fact_lists.to_file(found, suffix), f"back{suffix}") == found, suffix
    assert fact_lists.from_bytes(fact_lists.to_bytes(found)) == found


@nasty.few
@given(RECORDS, st.booleans())
def test_records_of_anything_are_read_or_refused(records, lines):
    try:
        text = "\n".join(json.dumps(r) for r in records) if lines else json.dumps(records)
    except ValueError:  # Python writes no number that large
        text = repr(records)
    found = read_or_refused(text.encode(), "nasty.jsonl" if lines else "nasty.json")
    if found and all(fact.foil is not None or fact.foil_auto for fact in found):
        kept(found)


@nasty.few
@given(
    st.lists(st.tuples(*[nasty.texts.filter(lambda text: len(text) <= 20_000)] * 4), min_size=1, max_size=3),
    st.sampled_from([",", "\t", ";"]),
)
def test_tables_of_any_text_are_read_or_refused(rows, separator):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerows([("prompt", "subject", "target_true", "target_new"), *rows])
    content = out.getvalue().encode("utf-8", "replace")
    found = read_or_refused(content, "nasty.csv" if separator != "\t" else "nasty.tsv")
    if found and all(fact.foil for fact in found):
        kept(found)


NO_TEXT = "\0\ufeff"
FIELD = nasty.texts.map(lambda text: text.encode("utf-8", "replace").decode().strip(NO_TEXT)[:500].replace("\0", "x"))
FIELD = FIELD.filter(lambda text: text.strip() and not text.startswith("{"))


@nasty.few
@given(st.lists(st.tuples(FIELD, FIELD, FIELD, FIELD, FIELD), min_size=1, max_size=3), st.booleans())
@example([("a\rb {}\r\nc", "x\ry", "=1+1", "@SUM(A1)", "-1")], True)
def test_a_kept_list_of_any_text_is_read_back_from_every_format(rows, auto):
    found = []
    for n, row in enumerate(rows):
        prompt, subject, true, foil, relation = (text.strip() for text in row)
        found.append(Fact(f"{{}} {prompt}", subject, true, None if auto else foil, n, relation, foil_auto=auto))
    kept(found)


@nasty.few
@given(st.binary(max_size=60), st.sampled_from(SUFFIXES), st.text(st.sampled_from('{}[]",:\t\n\r1\\uD8'), max_size=40))
@example(f'[{{"subject": {DIGITS}}}]'.encode(), ".json", "")
@example(f'{{"subject": {DIGITS}}}'.encode(), ".jsonl", "")
@example(f'prompt,subject\n"{{""x"": {DIGITS}}}",a\n'.encode(), ".csv", "")
@example(f'[{{"prompt": {DEEP}, "subject": "a", "target_true": "b"}}]'.encode(), ".json", "")
@example(b"[" * 100_000, ".jsonl", "")
@example(b'{"a":' * 100_000, ".json", "")
@example(b'[{"subject": 1e999, "prompt": NaN, "target_true": -Infinity}]', ".json", "")
@example(b'[{"subject": "\\ud800", "prompt": "{}", "target_true": "x", "target_new": "y"}]', ".json", "")
@example(("a" * 100_000 + ",subject\n1,2\n").encode(), ".csv", "")
@example(b"\xff\xfe\x00", ".csv", "")
def test_bytes_of_any_kind_are_read_or_refused(content, suffix, text):
    read_or_refused(content, f"nasty{suffix}")
    read_or_refused(text.encode(), f"nasty{suffix}")


def test_a_damaged_parquet_file_is_refused_or_read():
    whole = fact_lists.to_file([Fact("{} is in", "Rome", "Italy", "Spain", case_id=n) for n in range(3)], ".parquet")
    assert len(facts.read(whole, "f.parquet")) == 3
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        read_or_refused(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :], "nasty.parquet")
        read_or_refused(whole[:at] or b" ", "nasty.parquet")


SAME = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, dtype=np.int32)), pa.array(["a" * 10_000]))
LONG = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, dtype=np.int32)), pa.array(["a" * 50_000_000]))
BOMBS = {
    # (ending, content, what is said): each would take many times its size, or hours
    "rows": (".parquet", {"prompt": pa.array(["{} is in"] * 600_000)}, "unpacks to more than 500,000 rows"),
    "equal values": (".parquet", {"prompt": SAME.cast(pa.dictionary(pa.int32(), pa.string()))}, "512 MiB"),
    "a long value": (".parquet", {"prompt": LONG}, "512 MiB"),
    "a long value inside": (".parquet", {"a": pa.StructArray.from_arrays([LONG], ["prompt"])}, "512 MiB"),
    "lists of nothing": (".parquet", {"a": pa.array([[None] * 20_000] * 600, pa.list_(pa.int8()))}, "10,000,000"),
    "columns": (".parquet", {f"c{i}": pa.array([1]) for i in range(1001)}, "has 1,001 columns"),
    "a wide table": (".csv", ",".join(f"c{i}" for i in range(400_000)).encode(), "has 400,000 columns"),
    "a wide record": (".json", json.dumps([{f"c{i}": 1 for i in range(1001)}]).encode(), "row 0 has 1,001 columns"),
    "empty lines": (".csv", b"prompt,subject\n" + b",\n" * 2_500_000, "has 2,500,001 lines"),
    "empty records": (".json", b"[" + b"{}," * 600_000 + b"{}]", "has 600,001 records"),
    "empty lists": (".json", b"[" + b"[]," * 11_000_000 + b"[]]", "more values than the 10,000,000"),
    "lines of records": (".jsonl", b"{}\n" * 2_100_000, "has 2,100,000 lines"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_takes_far_more_than_its_size_is_refused_before_it_does(name):
    ending, content, said = BOMBS[name]
    if ending == ".parquet":
        out = io.BytesIO()
        texts = name.startswith("a long value")  # not as Arrow's categories: as any other program writes them
        pq.write_table(pa.table(content), out, compression="zstd", store_schema=not texts)
        content = out.getvalue()
        assert len(content) < 600_000
    before = peak()
    with pytest.raises(InputError, match=said):
        facts.read(content, f"bomb{ending}")
    assert peak() - before < 1.2e9


def peak() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@nasty.few
@given(nasty.json_values)
@example([{"name": "a", "steps": [{"site": "moe", "layer": 10**400, "pos": "last", "restore": "clean"}]}])
@example([{"name": "a", "steps": [{"site": [[]], "layer": {}, "pos": float("nan"), "experts": [float("inf")]}]}])
def test_patches_of_anything_are_refused(value):
    try:
        patch_file.parse_patches(value)
    except InputError as error:
        assert error.field == "patches"
    else:
        assert value[0]["steps"][0]["layer"] == 10**400


STEP = {"site": "moe", "layer": 1, "pos": "last", "restore": "clean"}


@nasty.few
@given(st.sampled_from([*STEP, "experts", "equal_norm_with", "knockout", "other"]), nasty.json_values)
def test_one_key_of_a_step_may_be_anything(key, value):
    try:
        (spec,) = patch_file.parse_patches([{"name": "a", "steps": [STEP | {key: value}]}])
    except InputError as error:
        assert error.field == "patches" and "patch 'a', step 0" in error.what
    else:
        assert all(layer >= 0 for layer in spec.steps[0].layers)


def test_a_patches_file_that_is_a_bomb_is_refused(tmp_path):
    for content in (b"[" * 100_000, f"[{DIGITS}]".encode(), b"\xff", b"", b"\x00" * 100):
        (tmp_path / "p.json").write_bytes(content)
        with pytest.raises(InputError) as refused:
            patch_file.read_patches(tmp_path / "p.json")
        assert refused.value.field == "patches"


FIELDS = ("noise", "draws", "seed", "corruption", "special_tokens", "object_tokens", "experts", "replacement")


@nasty.few
@given(st.sampled_from(FIELDS), st.one_of(nasty.json_values, nasty.numbers))
@example("noise", float("nan"))
@example("noise", -1.0)
@example("draws", float("inf"))
@example("draws", 10**5000)
@example("experts", None)
def test_a_request_takes_a_value_or_names_the_field(name, value):
    try:
        request = TraceRequest(fact=Fact("{} is", "a", "b", "c"), **{name: value})
    except InputError as error:
        assert error.field.replace(" ", "_") == name and len(str(error)) <= 2 * MOST + 1
    else:
        assert 0 < request.noise <= 100 and 1 <= request.draws <= 1000 and 0 <= request.seed <= 2**62
        assert TraceRequest.from_dict(request.to_dict()) == request


@nasty.few
@given(st.sampled_from(["name", "dtype", "device", "quantisation", "placement"]), nasty.json_values)
def test_a_model_takes_a_value_or_names_the_field(name, value):
    try:
        ModelSpec(**{name: value})
    except InputError as error:
        assert error.field == {"name": "model"}.get(name, name)
    else:
        assert isinstance(value, str) and value.strip()


SETTINGS = sorted(f.name for f in dataclasses.fields(StudySettings))


@nasty.few
@given(st.sampled_from(SETTINGS), st.one_of(nasty.json_values, nasty.numbers))
@example("n", 10**400)
@example("noise", 10**400)
@example("noise_levels", [float("nan")])
def test_a_study_takes_a_setting_or_names_it(name, value):
    try:
        made = StudySettings.from_dict({name: value})
    except InputError as error:
        assert error.field == name
    else:
        assert StudySettings.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@nasty.few
@given(nasty.texts)
def test_a_list_of_prompts_is_read_or_refused(text):
    for source in (text, text.encode("utf-8", "surrogatepass")):
        try:
            lines = prompt_lists.read_lines(source, "The list")
        except InputError as error:
            assert error.field == "prompts" and "The list" in error.what
        else:
            assert prompt_lists.read_lines("\n".join(lines)) == lines


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers_for_tests.tokenizer("prefix_space")


SHORT = nasty.texts.map(lambda text: text[:300])


@nasty.few
@given(prompt=SHORT | SHORT.map("{} ".__add__), subject=SHORT, true=SHORT, foil=st.none() | SHORT)
@example(prompt="a " * (nasty.LONG // 2), subject="a", true="b", foil="c")
@example(prompt="{}" * 2000, subject="x" * 4000, true="b", foil="c")
@example(prompt="The capital of {} is", subject="\ud800", true="b", foil="c")
@example(prompt="The capital of {} is", subject="می\u200cخواهم", true="b", foil="c")
def test_a_fact_while_it_is_typed_has_tokens_or_problems(tokenizer, prompt, subject, true, foil):
    fact = Fact(prompt, subject, true, foil)
    try:
        live = typed.live(tokenizer, fact, max_length=2048)
    except ExpertScopeError as error:
        raise AssertionError("problems are values here") from error
    assert (live.prepared is None) == bool(live.problems)
    for problem in live.problems:
        assert problem.field in ("prompt", "subject", "true", "foil", "occurrence")
        assert len(str(problem)) <= 2 * MOST + 1
    if live.prepared is not None:
        start = prompt.find("{}") if "{}" in prompt else prompt.find(subject.strip())
        spans = [live.prepared.spans[p] for p in live.prepared.subject_positions]
        assert spans[0][0] <= start + len(subject) and spans[-1][1] >= start + len(subject.strip())
        assert live.prepared.true_id != live.prepared.foil_id
