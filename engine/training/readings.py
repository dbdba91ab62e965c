"""What the frozen verifier made of each rollout, kept so that it reads none of them twice."""

import torch
from torch import Tensor

from engine.training.frozen_verifier import FrozenVerifier, Reading

MAX_BYTES = 8 << 30


class ReadingCache:
    """Readings of whole rows by their tokens, in half precision and in host memory.

    Half of a drafter's step is the verifier's forward over rows that earlier epochs had as well.
    A row's hidden states do not depend on its neighbours or on the padding to its right.
    """

    def __init__(self, verifier: FrozenVerifier, taps: tuple[int, ...]) -> None:
        self._verifier, self._taps = verifier, taps
        self._known: dict[bytes, Tensor] = {}  # row tokens -> [L, (taps + 1) * H]
        self._num_bytes = 0

    def read(self, token_ids: Tensor, lengths: Tensor) -> Reading:
        """Token ids [B, L] with their true lengths [B]; past its length a row holds zeros."""
        rows = [row[:n] for row, n in zip(token_ids.cpu(), lengths.tolist(), strict=True)]
        keys = [row.numpy().tobytes() for row in rows]
        found = {key: self._known[key] for key in keys if key in self._known}
        missing = [i for i, key in enumerate(keys) if key not in found]
        if missing:
            found |= self._make(token_ids[missing], [keys[i] for i in missing], lengths[missing])
        width = next(iter(found.values())).shape[1]
        together = torch.zeros(*token_ids.shape, width, device=token_ids.device)
        for row, key in zip(together, keys, strict=True):
            row[: len(found[key])] = found[key].to(row)
        num_tapped = width // (len(self._taps) + 1) * len(self._taps)
        return Reading(token_ids, together[..., :num_tapped], together[..., num_tapped:])

    def _make(self, token_ids: Tensor, keys: list[bytes], lengths: Tensor) -> dict[bytes, Tensor]:
        reading = self._verifier.read(token_ids, self._taps)
        together = torch.cat((reading.tapped, reading.hidden), dim=-1)
        made = {
            key: _halved(row[:n].cpu())
            for key, row, n in zip(keys, together, lengths.tolist(), strict=True)
        }
        if self._num_bytes < MAX_BYTES:
            self._known |= made
            self._num_bytes += sum(row.nbytes for row in made.values())
        return made


def _halved(row: Tensor) -> Tensor:
    """In float16, whose rounding is the finer; but some models have hidden states beyond it."""
    fits = row.abs().max() < torch.finfo(torch.float16).max
    return row.to(torch.float16 if fits else torch.bfloat16)
