"""The bundled facts (``facts.jsonl``, CounterFact's record shape) as plain objects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).resolve().parent
FACTS = DEMO / "facts.jsonl"


@dataclass(frozen=True)
class Fact:
    """One record: ``template`` is the one held back for this fact, ``unseen`` the prompts of untrained templates."""

    case_id: int
    relation: str
    subject: str
    true: str
    foil: str
    template: str
    unseen: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The held-out prompt: the pair (this fact, this template) is never trained."""
        return self.template.replace("{}", self.subject)

    @property
    def subject_start(self) -> int:
        """Character offset of the subject in :attr:`prompt`."""
        return self.template.index("{}")


def load_facts(path: Path | str = FACTS) -> list[Fact]:
    """All facts of a JSONL file, in file order."""
    facts = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        rewrite = record["requested_rewrite"]
        facts.append(
            Fact(
                case_id=record["case_id"],
                relation=rewrite["relation_id"],
                subject=rewrite["subject"],
                true=rewrite["target_true"]["str"].strip(),
                foil=rewrite["target_new"]["str"].strip(),
                template=rewrite["prompt"],
                unseen=tuple(record["paraphrase_prompts"]),
            )
        )
    return facts
