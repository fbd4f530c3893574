"""The virtual vocabulary: token ids above the base vocabulary, by which an engine addresses virtual tokens.

A prefix cache distinguishes tokens by id only, so each load of a prompt takes new ids and no id is ever reused. A
prompt's tensors are freed with the last job that uses them.

Each tenant has a salted copy of the base vocabulary, above `FIRST_SALTED_ID`. The first token of a text is encoded in
it. Since a block's hash includes the hash of the block before it, no other tenant can match a block of the text.

Shapes: P virtual tokens, K key/value heads, D head size, H width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.errors import EngineError
from softprompt.prefix.kv import Prefix

ID_LIMIT = 2**31  # an engine hashes and stores ids as int32
FIRST_SALTED_ID = 2**30  # below are virtual ids, above the tenants' alphabets


@dataclass(eq=False)
class LoadedPrompt:
    """A loaded prefix.

    Attributes:
        ids: lead, virtual ids, follow; the text starts after them.
        first: number of lead ids, which is the position of the first virtual token.
        size: P, the number of virtual tokens.
        embeddings: [P, H] of an embedding prompt.
        layers: per layer (keys [P, K, D], values [P, K, D']) of a KV prompt, as a paged cache stores them.
        users: number of jobs that hold it.
        listed: whether new jobs can name it.
    """

    name: str
    ids: tuple[int, ...] = ()
    first: int = 0
    size: int = 0
    embeddings: Tensor | None = None
    layers: tuple[tuple[Tensor, Tensor], ...] = ()
    users: int = 0
    listed: bool = True

    def virtual(self, begin: int, end: int) -> tuple[int, int]:
        """The virtual tokens [a, b) at the positions [begin, end); a >= b if none."""
        return max(begin, self.first) - self.first, min(end, self.first + self.size) - self.first


class VirtualVocabulary:
    """The loaded prefixes by name, and their virtual ids.

    Args:
        first: the first id after the base vocabulary.
    """

    def __init__(self, first: int) -> None:
        self.first, self._next = first, first
        self._listed: dict[str, LoadedPrompt] = {}
        self._held: set[LoadedPrompt] = set()
        self._tenants: dict[str, int] = {"": 0}

    def salted(self, token: int, tenant: str) -> int:
        """The token in a tenant's salted vocabulary; for the tenant "" the token itself.

        Raises EngineError if there are too many tenants.
        """
        number = self._tenants.setdefault(tenant, len(self._tenants))
        if FIRST_SALTED_ID + number * self.first > ID_LIMIT:
            del self._tenants[tenant]
            raise EngineError("there are too many tenants", expected=f"at most {len(self._tenants)}", got=tenant)
        return token if number == 0 else FIRST_SALTED_ID + (number - 1) * self.first + token

    def names(self) -> tuple[str, ...]:
        """Names of the loaded prefixes."""
        return tuple(self._listed)

    def load(self, name: str, prefix: Prefix, device: torch.device, dtype: torch.dtype) -> None:
        """Load a prefix, copying its tensors to this device and dtype. Jobs keep an older version of the name.

        Raises EngineError if all virtual ids are used up.
        """
        size = prefix.prompt.n_tokens if prefix.prompt else 0
        if self._next + size > FIRST_SALTED_ID:
            raise EngineError("no virtual ids are left", where=name, hint="restart the engine")
        ids = (*prefix.lead, *range(self._next, self._next + size), *prefix.follow)
        loaded = LoadedPrompt(name, ids, len(prefix.lead), size)
        embeddings = prefix.prompt.input_embeddings() if prefix.prompt else None
        layers = prefix.prompt.keys_values() if prefix.prompt else None
        if embeddings is not None:
            loaded.embeddings = embeddings.detach().to(device, dtype, copy=True)
        if layers is not None:
            kept = (kv for kv in layers if kv is not None)
            loaded.layers = tuple((_stored(k, device, dtype), _stored(v, device, dtype)) for k, v in kept)
        self._next += size
        if name in self._listed:
            self.unload(name)
        self._listed[name] = loaded

    def unload(self, name: str) -> None:
        """Unload a name; its tensors are freed with the last job. Raises EngineError for an unknown name."""
        loaded = self._find(name)
        del self._listed[name]
        loaded.listed = False
        self._free(loaded)

    def take(self, name: str | None) -> LoadedPrompt:
        """Hold the prefix of this name until `release`; an empty one for None.

        Raises EngineError for an unknown name.
        """
        loaded = LoadedPrompt("", listed=False) if name is None else self._find(name)
        loaded.users += 1
        self._held.add(loaded)
        return loaded

    def release(self, loaded: LoadedPrompt) -> None:
        """Release a prefix that `take` returned."""
        loaded.users -= 1
        if not loaded.users:
            self._held.discard(loaded)
            self._free(loaded)

    def check_integrity(self, holders: list[LoadedPrompt]) -> None:
        """Raises AssertionError unless `holders`, with an entry for each `take`, matches the user counts."""
        known = self._held | set(self._listed.values())
        for loaded in known | set(holders):
            assert loaded.users == sum(holder is loaded for holder in holders), (
                f"{loaded.name} has {loaded.users} users"
            )
            assert loaded in known, f"{loaded.name} is held but not known"
        ids = [i for loaded in known for i in loaded.ids if i >= self.first]
        assert len(ids) == len(set(ids)), "two prompts share a virtual id"
        assert max(ids, default=0) < self._next, "a virtual id was not given out"

    def _find(self, name: str) -> LoadedPrompt:
        if name not in self._listed:
            raise EngineError("no such soft prompt is loaded", expected=sorted(self._listed), got=name)
        return self._listed[name]

    def _free(self, loaded: LoadedPrompt) -> None:
        if not loaded.users and not loaded.listed:
            loaded.embeddings, loaded.layers = None, ()


def only_text_ids(ids_Q: Tensor, vocab: int) -> Tensor:
    """Ids of text tokens in the base vocabulary, unsalted; virtual tokens become 0."""
    return torch.where(ids_Q < FIRST_SALTED_ID, ids_Q.where(ids_Q < vocab, 0), (ids_Q - FIRST_SALTED_ID) % vocab)


def _stored(states_KPD: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return states_KPD.detach().to(device, dtype, copy=True).transpose(0, 1).contiguous()
