"""Files of facts: every shape that is read, what is drawn where a foil is missing, and what a bad file is told."""

from __future__ import annotations

import csv
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core import facts
from core.errors import ExpertScopeError, InputError
from core.requests import Fact


def counterfact(case_id, prompt, subject, true, new, relation="P1", **more):
    rewrite = {
        "prompt": prompt,
        "relation_id": relation,
        "target_new": {"str": new, "id": "Q1"},
        "target_true": {"str": true, "id": "Q2"},
        "subject": subject,
    }
    return {"case_id": case_id, "pararel_idx": 7, "requested_rewrite": rewrite, "paraphrase_prompts": ["x"]} | more


TRACING = [  # the columns of NeelNanda/counterfact-tracing, in its order, with its leading spaces
    {
        "relation": "The mother tongue of {} is",
        "relation_prefix": "The mother tongue of",
        "relation_suffix": " is",
        "prompt": "The mother tongue of Danielle Darrieux is",
        "relation_id": "P103",
        "target_false_id": "Q1860",
        "target_true_id": "Q150",
        "target_true": " French",
        "target_false": " English",
        "subject": " Danielle Darrieux",
    },
    {
        "relation": "{} is a professional",
        "relation_prefix": "",
        "relation_suffix": " is a professional",
        "prompt": "Edwin of Northumbria is a professional",
        "relation_id": "P106",
        "target_false_id": "Q1",
        "target_true_id": "Q2",
        "target_true": " king",
        "target_false": " actor",
        "subject": "Edwin of Northumbria",
    },
]
KNOWN = [  # ROME's known_1000: no foil, and a prompt that may go on after the template
    {
        "known_id": 0,
        "subject": "Vinson Massif",
        "attribute": "Antarctica",
        "template": "{} is located in the continent",
        "prediction": " of Antarctica. It is the largest of the three",
        "prompt": "Vinson Massif is located in the continent of",
        "relation_id": "P30",
    },
    {
        "known_id": 1,
        "subject": "Beats Music",
        "attribute": "Apple",
        "template": "{} is owned by",
        "prediction": " Apple, which is also",
        "prompt": "Beats Music is owned by",
        "relation_id": "P127",
    },
    {
        "known_id": 2,
        "subject": "Lagos",
        "attribute": "Africa",
        "template": "{} is located in the continent",
        "prediction": " of Africa",
        "prompt": "Lagos is located in the continent of",
        "relation_id": "P30",
    },
    {
        "known_id": 3,
        "subject": "Audible.com",
        "attribute": "Amazon",
        "template": "{} is owned by",
        "prediction": " Amazon",
        "prompt": "Audible.com is owned by",
        "relation_id": "P127",
    },
]
FRANCE = counterfact(17, "The capital of {} is", "France", "Paris", "Rome", "P36")
SPAIN = counterfact(4, "The capital of {} is", " Spain ", " Madrid", "Lyon ", "P36")
EXPECTED = [
    Fact("The capital of {} is", "France", "Paris", "Rome", 17, "P36"),
    Fact("The capital of {} is", "Spain", "Madrid", "Lyon", 4, "P36"),
]


def as_json(records) -> bytes:
    return json.dumps(records, ensure_ascii=False).encode()


def as_jsonl(records) -> bytes:
    return "\n".join(json.dumps(r, ensure_ascii=False) for r in records).encode() + b"\n"


def as_csv(records, delimiter=",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().encode()


def as_parquet(records) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), out)
    return out.getvalue()


def refused(content, name="facts.json", **options) -> InputError:
    with pytest.raises(InputError) as caught:
        facts.read(content, name, **options)
    return caught.value


# -- shapes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (as_json([FRANCE, SPAIN]), "counterfact.json"),
        (json.dumps([FRANCE, SPAIN], indent=2).encode("utf-8-sig"), "bom.JSON"),
        (as_jsonl([FRANCE, SPAIN]), "counterfact.jsonl"),
        (b"\n" + as_jsonl([FRANCE, SPAIN]).replace(b"\n", b"\r\n\r\n"), "windows.ndjson"),
        (as_jsonl([FRANCE, SPAIN]), "lines_under_a.json"),
        (as_json([FRANCE, SPAIN]), "list_under_a.jsonl"),
        (as_parquet([FRANCE, SPAIN]), "counterfact.parquet"),
        (json.dumps([FRANCE, SPAIN]).encode("utf-16"), "utf16.json"),
    ],
)
def test_counterfact_in_every_format(content, name):
    assert facts.read(content, name) == EXPECTED


def test_counterfact_flattened_or_in_cells():
    dotted = [
        {
            "case_id": r["case_id"],
            "requested_rewrite.prompt": r["requested_rewrite"]["prompt"],
            "requested_rewrite.subject": r["requested_rewrite"]["subject"],
            "requested_rewrite.relation_id": r["requested_rewrite"]["relation_id"],
            "requested_rewrite.target_true.str": r["requested_rewrite"]["target_true"]["str"],
            "requested_rewrite.target_new.str": r["requested_rewrite"]["target_new"]["str"],
        }
        for r in (FRANCE, SPAIN)
    ]
    assert facts.read(as_csv(dotted), "a.csv") == EXPECTED
    cells = [r | {"requested_rewrite": json.dumps(r["requested_rewrite"])} for r in (FRANCE, SPAIN)]
    assert facts.read(as_csv(cells), "a.csv") == EXPECTED


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (as_json(TRACING), "t.json"),
        (as_jsonl(TRACING), "t.jsonl"),
        (as_csv(TRACING), "t.csv"),
        (as_csv(TRACING, ";"), "semicolons.csv"),
        (as_csv(TRACING, "\t"), "t.tsv"),
        (as_parquet(TRACING), "t.parquet"),
    ],
)
def test_counterfact_tracing_columns(content, name):
    read = facts.read(content, name)
    assert read == [
        Fact("The mother tongue of {} is", "Danielle Darrieux", "French", "English", 0, "P103"),
        Fact("{} is a professional", "Edwin of Northumbria", "king", "actor", 1, "P106"),
    ]
    assert [f.text for f in read] == [r["prompt"] for r in TRACING]


@pytest.mark.parametrize(
    "drop", [("prompt",), ("prompt", "relation"), ("relation", "relation_prefix", "relation_suffix")]
)
def test_counterfact_tracing_with_columns_missing(drop):
    thinner = [{k: v for k, v in r.items() if k not in drop} for r in TRACING]
    assert [f.text for f in facts.read(as_json(thinner), "t.json")] == [r["prompt"] for r in TRACING]


@pytest.mark.parametrize(("write", "name"), [(as_json, "k.json"), (as_csv, "k.csv"), (as_parquet, "k.parquet")])
def test_known_1000_columns(write, name):
    read = facts.read(write(KNOWN), name)
    assert [f.text for f in read] == [r["prompt"] for r in KNOWN]
    assert [f.prompt for f in read][:2] == ["{} is located in the continent of", "{} is owned by"]
    assert [f.true for f in read] == ["Antarctica", "Apple", "Africa", "Amazon"]
    # with two objects in each relation there is only one foil to draw
    assert [f.foil for f in read] == ["Africa", "Amazon", "Antarctica", "Apple"]
    assert [f.case_id for f in read] == [0, 1, 2, 3]


def test_a_prompt_without_template_stays_a_whole_text():
    record = {"prompt": "The capital of France is", "subject": "France", "target_true": "Paris", "target_false": "Rome"}
    assert facts.read(as_json([record]), "a.json") == [Fact("The capital of France is", "France", "Paris", "Rome", 0)]
    other = record | {"template": "The capital city of {} is"}
    assert facts.read(as_json([other]), "a.json")[0].prompt == "The capital of France is"


def test_one_record_alone_and_numbers_as_objects():
    record = counterfact(3, "{} was founded in", "Apple", 1976, 1975.0)
    assert facts.read(json.dumps(record).encode(), "one.json") == [
        Fact("{} was founded in", "Apple", "1976", "1975", 3, "P1")
    ]


def test_missing_case_ids_are_row_numbers():
    records = [{k: v for k, v in r.items() if k != "case_id"} for r in (FRANCE, SPAIN)]
    for content, name in ((as_json(records), "a.json"), (b"\n\n" + as_jsonl(records), "a.jsonl")):
        assert [f.case_id for f in facts.read(content, name)] == [0, 1]
    later = [r | {"known_id": 50 + i} for i, r in enumerate(KNOWN)]
    assert [f.case_id for f in facts.read(as_json(later), "k.json")] == [0, 1, 2, 3]


def test_case_ids_as_text_and_as_floats():
    rows = [
        {"case_id": c, "prompt": "{} is", "subject": "a", "target_true": "b", "target_false": "c"} for c in ("7", 8.0)
    ]
    assert [f.case_id for f in facts.read(as_json(rows), "a.json")] == [7, 8]


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_column_names_count_in_any_case(ending):
    names = ["Prompt", "SUBJECT", "Target True", "target-new", "Relation_ID", "Note"]
    cells = ["The capital of {} is", "France", "Paris", "Rome", "capital", "odd"]
    record = dict(zip(names, cells, strict=True))
    lines = [",".join(names), ",".join(cells)] if ending == ".csv" else [json.dumps(record)]
    (fact,) = facts.read("\n".join(lines).encode(), f"odd{ending}")
    assert fact == Fact("The capital of {} is", "France", "Paris", "Rome", case_id=0, relation="capital")
    both = b"prompt,subject,Subject,true,foil\nThe capital of {} is,France,Spain,Paris,Rome\n"
    assert facts.read(both, "both.csv")[0].subject == "France", "the name as it is documented comes first"


def test_a_path_is_read_as_its_content(tmp_path):
    path = tmp_path / "Fakten ü.json"
    path.write_bytes(as_json([FRANCE, SPAIN]))
    assert facts.read(path) == facts.read(str(path)) == EXPECTED


def test_line_separators_inside_json_strings():
    record = counterfact(1, "The\u2028capital of {} is", "France", "Paris", "Rome")
    assert facts.read(as_jsonl([record, FRANCE]), "a.jsonl")[0].prompt == "The\u2028capital of {} is"


def test_cells_with_separators_quotes_and_line_breaks():
    rows = [
        {"prompt": 'The "capital", of\n{} is', "subject": "a, b", "target_true": "x", "target_false": "y"},
        {"prompt": "{} is", "subject": "c", "target_true": "x", "target_false": "y"},
    ]
    read = facts.read(as_csv(rows), "a.csv")
    assert (read[0].prompt, read[0].subject, read[1].subject) == ('The "capital", of\n{} is', "a, b", "c")


# -- foils ---------------------------------------------------------------------------------------------------------


def without_foils(n=40):
    objects = ["Paris", "Rome", "Madrid", "Berlin", "Lyon"]
    return [
        {
            "prompt": "{} is in",
            "subject": f"place {i % 23}",
            "target_true": objects[i % 5],
            "relation_id": "P1",
            "case_id": 3 * i,
        }
        for i in range(n)
    ]


def test_drawn_foils_follow_the_documented_rule():
    records = without_foils()
    for fact in facts.read(as_json(records), "a.json"):
        true_of_subject = {r["target_true"] for r in records if r["subject"] == fact.subject}
        allowed = sorted({r["target_true"] for r in records} - true_of_subject)
        assert fact.foil == random.Random(fact.case_id).choice(allowed)
        assert fact.foil not in true_of_subject


def test_drawn_foils_depend_on_the_seed_only():
    content = as_json(without_foils())
    assert facts.read(content, "a.json") == facts.read(content, "b.json")
    assert facts.read(content, "a.json", seed=1000) != facts.read(content, "a.json")


def test_foils_are_drawn_from_the_same_relation():
    records = KNOWN + [{**r, "relation_id": "P9", "attribute": "Mars"} for r in KNOWN[:1]]
    read = facts.read(as_json(records), "a.json")
    # "Mars" is alone in its relation: nothing to draw, and tracing that fact will say so
    assert [f.foil for f in read] == ["Africa", "Amazon", "Antarctica", "Apple", None]


def test_given_foils_stay():
    records = [FRANCE, SPAIN, {"prompt": "{} is", "subject": "Italy", "target_true": "Rome", "relation_id": "P36"}]
    assert [f.foil for f in facts.read(as_json(records), "a.json") if f.subject != "Italy"] == ["Rome", "Lyon"]


def test_no_foil_and_no_relation_offers_the_automatic_foil():
    records = [{"prompt": "{} is", "subject": s, "target_true": t} for s, t in (("a", "b"), ("c", "d"))]
    error = refused(as_json(records))
    assert error.field == "foil" and "--foil auto" in error.next and "row 0, row 1" in error.what
    read = facts.read(as_json(records), "facts.json", foil="auto")
    assert all(f.foil_auto and f.foil is None for f in read)
    assert all(f.foil_auto and f.foil is None for f in facts.read(as_json([FRANCE]), "a.json", foil="auto"))


# -- bad files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "f.json", ["f.json", "empty"]),
        (b" \n ", "f.jsonl", ["f.jsonl", "empty"]),
        (b"[]", "f.json", ["f.json", "no records"]),
        (b"a,b\n", "f.csv", ["f.csv", "no records"]),
        (b'{"a": 1}', "f.json", ["f.json", "not a list"]),
        (b"3", "f.json", ["f.json", "number"]),
        (b'[{"subject": "x"}, 4]', "f.json", ["f.json", "row 1", "number"]),
        (b'[{"subject": "x"', "f.json", ["f.json", "JSON", "line 1"]),
        (b'{"subject": "x"}\n{"subject"\n', "f.jsonl", ["f.jsonl", "row 1 (line 2)", "JSON"]),
        (b"[" * 100_000, "f.json", ["f.json", "JSON"]),
        (b"\xff\xfa\x00", "f.csv", ["f.csv", "UTF-8"]),
        (b"PAR1 but not really", "f.parquet", ["f.parquet", "Parquet"]),
        (b"a,b\n1,2,3\n", "f.csv", ["f.csv", "row 0 (line 2)", "3 cells"]),
        (b'a,b\n"1,2\n', "f.csv", ["f.csv", "CSV"]),
        (b"a,a\n1,2\n", "f.csv", ["f.csv", "column a twice"]),
        (b"x", "f.xlsx", ["f.xlsx", "format"]),
        (b"x", "facts", ["facts", "format"]),
        (as_json([FRANCE, {"case_id": 1}]), "f.json", ["f.json", "row 1", "subject"]),
        (as_json([counterfact(1, "{}", "", "x", "y")]), "f.json", ["row 0", "subject", "empty", "take the row out"]),
        (as_json([counterfact(1, "{}", "a", "  ", "y")]), "f.json", ["row 0", "target_true", "empty"]),
        (as_json([counterfact(1, None, "a", "x", "y")]), "f.json", ["row 0", "prompt"]),
        (as_json([counterfact(1, ["{}"], "a", "x", "y")]), "f.json", ["row 0", "prompt", "['{}']"]),
        (as_json([counterfact("one", "{}", "a", "x", "y")]), "f.json", ["row 0", "case_id", "'one'"]),
        (as_json([counterfact(-1, "{}", "a", "x", "y")]), "f.json", ["row 0", "case_id", "-1"]),
        (as_json([counterfact(1.5, "{}", "a", "x", "y")]), "f.json", ["row 0", "case_id", "1.5"]),
        (as_json([counterfact(True, "{}", "a", "x", "y")]), "f.json", ["row 0", "case_id", "True"]),
        (as_json([FRANCE, SPAIN, FRANCE]), "f.json", ["row 0", "row 2", "same case_id 17"]),
        (as_json([counterfact(1, "{}" + "x" * 30_000, "a", "x", "y")]), "f.json", ["row 0", "prompt", "30,002"]),
        (b"subject,prompt\na," + b"x" * 30_000 + b"\n", "f.csv", ["f.csv", "row 0", "prompt", "30,000"]),
        (b"subject,prompt\na," + b"x" * 300_000 + b"\n", "f.csv", ["f.csv", "line 2"]),
    ],
)
def test_bad_files_are_told_where(content, name, says):
    error = refused(content, name)
    assert error.exit_code == 2 and error.field == "facts"
    for part in says:
        assert part in str(error), (part, str(error))


def test_row_numbers_that_meet_given_case_ids():
    records = [FRANCE | {"case_id": 1}, {k: v for k, v in SPAIN.items() if k != "case_id"}]
    assert "row number" in refused(as_json(records)).what


def test_paths_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.json", tmp_path, "bad\0name.json"):
        with pytest.raises(InputError) as caught:
            facts.read(path)
        assert caught.value.field == "facts"


# -- looking things up ---------------------------------------------------------------------------------------------

CITIES = [
    Fact("{} is in", "São Paulo", "Brazil", "Chile", 1, "city_country"),
    Fact("The capital of {} is", "France", "Paris", "Rome", 2, "capital"),
    Fact("The capital of {} is", "New France", "Quebec", "Rome", 12, "capital"),
    Fact("{} is in", "Paris", "France", "Spain", 3, "city_country"),
    Fact("{} is", "nothing", "much", "less", 4),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [1, 2, 12, 3, 4]),
        ("sao", [1]),
        ("FRANCE", [2, 12, 3]),
        ("france cap", [2, 12]),
        ("city_country", [1, 3]),
        ("city country par", [3]),
        ("12", [12]),
        ("2", [2, 12]),
        ("zzz", []),
    ],
)
def test_search(text, expected):
    assert [f.case_id for f in facts.search(CITIES, text)] == expected


def test_search_everywhere_looks_at_prompt_and_foil_too():
    one, other = Fact("In a {} one finds", "zoo", "bears", "fish", 1), Fact("A {} is", "fish", "wet", "dry", 2)
    assert facts.search([one, other], "FINDS") == [] and facts.search([one, other], "finds", everywhere=True) == [one]
    assert facts.search([one, other], "fish", everywhere=True) == [other, one]


def test_search_by_relation_and_limit():
    assert [f.case_id for f in facts.search(CITIES, relation="capital")] == [2, 12]
    assert [f.case_id for f in facts.search(CITIES, "france", relation="capital", limit=1)] == [2]
    assert len(facts.search(CITIES * 30, limit=None)) == 150


def test_relations_and_find():
    assert facts.relations(CITIES) == {"capital": 2, "city_country": 2}
    assert facts.find(CITIES, 12).subject == "New France"
    with pytest.raises(InputError) as caught:
        facts.find(CITIES, 99)
    assert "99" in caught.value.what and "12" in caught.value.next


# -- the bundled list ----------------------------------------------------------------------------------------------


def test_bundled_facts_are_the_records_of_the_file():
    lines = facts.BUNDLED.read_text(encoding="utf-8").splitlines()
    listed = facts.bundled()
    assert len(listed) == len(lines)
    for line, fact in zip(lines, listed, strict=True):
        record = json.loads(line)
        rewrite = record["requested_rewrite"]
        assert fact == Fact(
            prompt=rewrite["prompt"],
            subject=rewrite["subject"],
            true=rewrite["target_true"]["str"],
            foil=rewrite["target_new"]["str"],
            case_id=record["case_id"],
            relation=rewrite["relation_id"],
        )
    assert listed is not facts.bundled()  # a caller may sort or filter its own


def test_a_missing_bundled_list_is_a_failure_with_advice(monkeypatch, tmp_path):
    monkeypatch.setattr(facts, "BUNDLED", tmp_path / "facts.jsonl")
    facts._bundled.cache_clear()
    with pytest.raises(ExpertScopeError) as caught:
        facts.bundled()
    facts._bundled.cache_clear()
    assert caught.value.exit_code == 1 and "--facts" in caught.value.next
