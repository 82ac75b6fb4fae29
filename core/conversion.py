"""Which tensors of a checkpoint make which parameters, by transformers' own conversion rules, a few at a time.

The hub's layout has a tensor per expert; the model has one for all experts of a layer. transformers converts
while it loads a whole model; here the same rules are applied to one layer's tensors whenever they are asked for. Names
no family.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from .checkpoint import Checkpoint


@dataclass
class Group:
    """Parameters that come from the same stored tensors. `first`: the name under which transformers collects them;
    `sources`: (pattern of the rule, stored name) in the rule's order; `made`: names of the parameters."""

    first: str
    rule: WeightConverter | WeightRenaming
    sources: list[tuple[str, str]] = field(default_factory=list)
    made: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the one parameter is the one stored tensor as it stands."""
        return isinstance(self.rule, WeightRenaming)


def groups_of(model: nn.Module, checkpoint: Checkpoint) -> list[Group]:
    """Every stored tensor that the model uses, grouped by what it becomes. `model` may be without memory.

    The grouping is that of `transformers.core_model_loading.convert_and_load_state_dict_in_model`; tensors that the
    model has no place for are left out, as there. Raises whatever a conversion rule objects to.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    wanted, prefix = model.state_dict(), model.base_model_prefix
    groups: dict[str, Group] = {}
    for stored in sorted(checkpoint.tensors, key=dot_natural_key):
        name, pattern = rename_source_key(stored, renamings, converters, prefix, wanted)
        if name not in wanted and stored in wanted:
            name, pattern = rename_source_key(stored, [], [], prefix, wanted)
        if name not in wanted:
            continue
        rule = WeightRenaming(stored, name) if pattern is None else by_pattern[pattern]
        group = groups.setdefault(name, Group(name, rule))
        group.sources.append((stored if pattern is None else pattern, stored))
    for group in groups.values():
        group.made = tuple(_convert(group, model, lambda stored: _shape_of(checkpoint, stored)))
    return list(groups.values())


class StoredWeights(Mapping[str, torch.Tensor]):
    """A model's parameters by name, read from its checkpoint and converted at every request; nothing is kept.

    In the number format of the model's own (possibly empty) parameters. `aliases`: {name: name of the parameter that it
    is tied to}. `per_pass`: bytes that a pass over the model's layers reads.
    """

    per_pass = 0

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, groups: Iterable[Group], aliases: Mapping[str, str]
    ) -> None:
        self.checkpoint = checkpoint
        self._model = model
        self._groups = {name: group for group in groups for name in group.made}
        self._groups |= {
            name: self._groups[source] for name, source in aliases.items() if source in self._groups
        }
        self._aliases = dict(aliases)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.fetch([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._groups)

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, name: object) -> bool:
        return name in self._groups

    def fetch(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Several parameters, every stored tensor read once, on the CPU."""
        wanted = {name: self._aliases.get(name, name) for name in names}
        groups = {group.first: group for group in (self._groups[source] for source in wanted.values())}
        made: dict[str, torch.Tensor] = {}
        places: list[tuple[str, torch.Tensor]] = []
        for group in groups.values():
            dtype = self._model.get_parameter_or_buffer(group.first).dtype
            stacked = _stack_at_once(group, self.checkpoint, dtype)
            if stacked is not None:
                made[group.first] = stacked[0]
                places += stacked[1]
            else:
                made |= _convert(group, self._model, lambda stored, dtype=dtype: self.checkpoint.read(stored).to(dtype))
        for stored, place in sorted(places, key=lambda item: self.checkpoint.place_of(item[0])):
            self.checkpoint.read_into(stored, place)
        return {name: made[source] for name, source in wanted.items()}

    def stored_names(self, name: str) -> list[str]:
        """The stored tensors that a parameter is made of."""
        return [stored for _, stored in self._groups[name].sources]


def _convert(
    group: Group, model: nn.Module, read: Callable[[str], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Apply the group's rule; `read` gives a stored tensor when the rule comes to it."""
    rule = copy.deepcopy(group.rule)
    for pattern, stored in group.sources:
        rule.add_tensor(group.first, stored, pattern, partial(read, stored))
    made: dict[str, Any] = rule.convert(group.first, model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _shape_of(checkpoint: Checkpoint, stored: str) -> torch.Tensor:
    entry = checkpoint.tensors[stored]
    return torch.empty(entry.shape, dtype=entry.dtype, device="meta")


def _stack_at_once(
    group: Group, checkpoint: Checkpoint, dtype: torch.dtype
) -> tuple[torch.Tensor, list[tuple[str, torch.Tensor]]] | None:
    """The commonest conversion without copies on the way: experts stacked, and their matrices put one under the other.

    (The parameter, still empty; for each stored tensor its place in it, which is one piece of memory), or None where
    the rule is another one.
    """
    rule = group.rule
    if not isinstance(rule, WeightConverter) or len(group.made) != 1:
        return None
    kinds = [type(operation) for operation in rule.operations]
    if kinds != [MergeModulelist, Concatenate][: len(kinds)]:
        return None
    if [operation.dim for operation in rule.operations] != [0, 1][: len(kinds)]:  # type: ignore[attr-defined]
        return None
    lists = [[stored for p, stored in group.sources if p == pattern] for pattern in rule.source_patterns]
    lists = [names for names in lists if names]
    shapes = [{checkpoint.tensors[stored].shape for stored in names} for names in lists]
    if any(len(found) != 1 for found in shapes) or len({len(names) for names in lists}) != 1:
        return None
    parts = [shape for (shape,) in shapes]
    if any(len(shape) != 2 or shape[1] != parts[0][1] for shape in parts) or len(parts) > 1 == len(kinds):
        return None
    out = torch.empty((len(lists[0]), sum(rows for rows, _ in parts), parts[0][1]), dtype=dtype)
    places: list[tuple[str, torch.Tensor]] = []
    begin = 0
    for names, (rows, _) in zip(lists, parts, strict=True):
        places += [(stored, out[expert, begin : begin + rows]) for expert, stored in enumerate(names)]
        begin += rows
    return out, places
