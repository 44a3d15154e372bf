"""Sampling many sequences side by side, each of which comes and goes when it wants to.

A sequence takes a row. What the model has read of it stays in that row while it is sampled, and is kept in pieces
until the episode's next turn; a prompt that several sequences share is read once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turncredit.agents.base import Request, Sample, Sampling
from turncredit.agents.draw import draw
from turncredit.agents.kept import Kept, KeptSequences, KeyValueRows, KeyValueShape
from turncredit.episode import TokenIds

READ_AT_ONCE = 4096  # padded tokens in one forward pass over new text
PADDING = 128  # how many of them may be padding before another pass costs less
ROUND_TO = 64  # the buffer's length grows in steps of so many tokens


@dataclass(slots=True, eq=False)
class _Sequence:
    """A request on its way."""

    number: int
    request: Request
    context: TokenIds
    kept: Kept = field(default_factory=Kept)
    shared: bool = False  # what is kept is the prompt of a whole group
    row: int = -1

    @property
    def new(self) -> TokenIds:
        """What the model has yet to read of the context."""
        return self.context[len(self.kept.token_ids):]

    @property
    def longest(self) -> int:
        """Tokens that it may come to."""
        return len(self.context) + self.request.max_new_tokens


class ContinuousBatch:
    """Requests go in by `add`; each `step` samples a token for every row and returns what has come to its end.

    Args:
        model: a transformers causal language model, in evaluation mode.
        shape: of what it keeps of a token.
        max_rows: sequences side by side.
        max_bytes: of keys and values, in the rows and kept between turns, each.
    """

    def __init__(self, model: Any, shape: KeyValueShape, max_rows: int, max_bytes: int) -> None:
        self.model, self.shape, self.max_rows, self.max_bytes = model, shape, max_rows, max_bytes
        self._added = 0
        self.forget()
        self.draw_from(Sampling(), ())

    def draw_from(self, sampling: Sampling, stop_ids: Sequence[int]) -> None:
        """Set the distribution, and the tokens that end a turn."""
        self.sampling, self._stops = sampling, set(stop_ids)
        self._stop_ids = torch.tensor(list(stop_ids), dtype=torch.long, device=self.shape.device)

    def forget(self) -> None:
        """Drop what is kept, and whatever is under way."""
        self.kept = KeptSequences(self.max_bytes)
        self._waiting: deque[_Sequence] = deque()
        self._rows: list[_Sequence | None] = []  # None: a row whose sequence has ended
        self._ended: list[tuple[int, Sample]] = []
        self.cache: KeyValueRows | None = None
        self._columns = _Columns(0, 0, self.shape.device)

    def add(self, requests: Sequence[Request]) -> list[int]:
        """Take requests in; returns the numbers under which `step` will give their samples."""
        numbers = list(range(self._added, self._added + len(requests)))
        self._added += len(requests)
        self._waiting.extend(_Sequence(number, request, np.asarray(request.context, np.int32))
                             for number, request in zip(numbers, requests))
        return numbers

    @property
    def unfinished(self) -> int:
        """Requests whose sample has not been returned yet."""
        return len(self._waiting) + sum(one is not None for one in self._rows) + len(self._ended)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Sample]]:
        """Sample one token for each sequence; returns (number, sample) of those that ended with it."""
        if self._waiting:
            self._admit()
        self._close_gaps()
        if self._rows:
            self._decode()
        ended, self._ended = self._ended, []
        return ended

    # Sequences come in.

    def _admit(self) -> None:
        """Give rows to those that wait, as far as there are rows; read their contexts; draw their first tokens."""
        gaps = [row for row, one in enumerate(self._rows) if one is None]
        coming = self._choose(len(gaps))
        # Of those with the same context, and nothing kept, one is read; the others take over what was read.
        first: dict[bytes, _Sequence] = {}
        readers: list[_Sequence] = []
        followers: list[_Sequence] = []
        for one in coming:
            self._look_up(one)
            follows = not one.kept.pieces and first.setdefault(one.context.tobytes(), one) is not one
            (followers if follows else readers).append(one)
        readers.sort(key=lambda one: len(one.new))  # those of one pass stand side by side
        places = [*gaps, *range(len(self._rows), len(self._rows) + len(coming))]
        for row, one in zip(places, [*readers, *followers]):
            one.row = row
            self._rows[row:row + 1] = [one]
        self._make_room(coming)
        self._read(readers)
        for one in followers:
            self._look_up(one)
        self._read(followers)

    def _choose(self, gaps: int) -> list[_Sequence]:
        """The next ones that fit into the rows and into memory; one always does."""
        running = len(self._rows) - gaps
        longest = max((one.longest for one in self._rows if one is not None), default=0)
        chosen: list[_Sequence] = []
        while self._waiting and running + len(chosen) < self.max_rows:
            longest = max(longest, self._waiting[0].longest)
            rows = max(running + len(chosen) + 1, len(self._rows))
            if running + len(chosen) and rows * longest * self.shape.bytes_per_token > self.max_bytes:
                break
            chosen.append(self._waiting.popleft())
        return chosen

    def _look_up(self, one: _Sequence) -> None:
        """Find what is kept of the sequence's episode, or else of a prompt like its own, but for the last token."""
        episode = one.request.episode
        kept = None if episode is None else self.kept.find(episode)
        if kept is not None and not kept.begins(one.context):
            kept = None
        one.shared = kept is None
        one.kept = kept or self.kept.find(one.context.tobytes()) or Kept()

    def _make_room(self, coming: Sequence[_Sequence]) -> None:
        """Let the buffers grow to what the rows need."""
        rows = len(self._rows)
        tokens = -(-max((one.longest for one in coming), default=0) // ROUND_TO) * ROUND_TO
        new_tokens = max((one.request.max_new_tokens for one in coming), default=0)
        if self.cache is None or (rows == len(coming) and not self.cache.holds(rows, tokens)):
            self.cache = KeyValueRows(self.shape, rows, tokens)  # nothing else is in it
        elif not self.cache.holds(rows, tokens):
            self.cache = self.cache.grown(max(rows, self.cache.rows), max(tokens, self.cache.tokens))
        self._columns.grow(rows, new_tokens)

    def _read(self, sequences: Sequence[_Sequence]) -> None:
        """Run the model over what it has not read yet: in passes over texts of similar lengths, shortest first."""
        batch: list[_Sequence] = []
        tokens = 0
        for one in sequences:
            padded = len(one.new) * (len(batch) + 1)
            if batch and (padded > READ_AT_ONCE or padded - tokens - len(one.new) > PADDING):
                self._read_batch(batch)
                batch, tokens = [], 0
            batch.append(one)
            tokens += len(one.new)
        if batch:
            self._read_batch(batch)

    def _read_batch(self, batch: Sequence[_Sequence]) -> None:
        assert self.cache is not None
        width = max(len(one.new) for one in batch)
        # Padded on the left, so that the last column is everybody's last token; padding writes to the spare place.
        ids = np.zeros((len(batch), width), np.int64)
        positions = np.zeros((len(batch), width), np.int64)
        places = np.full((len(batch), width), self.cache.tokens, np.int64)
        uniform = np.zeros((len(batch), self._columns.uniform.shape[1]))
        for i, one in enumerate(batch):
            start = 0
            for piece in one.kept.pieces:
                self.cache.put(one.row, start, piece)
                start += piece.shape[3]
            new = one.new
            ids[i, width - len(new):] = new
            places[i, width - len(new):] = positions[i, width - len(new):] = np.arange(start, len(one.context))
            limit = one.request.max_new_tokens
            uniform[i, :limit] = np.random.default_rng(one.request.seed).random(limit)
        rows = self._rows_of(batch)
        columns, index = self._columns, self._columns.index(rows)
        columns.uniform[index] = self._tensor(uniform)
        columns.length[index] = self._tensor([len(one.context) for one in batch])
        columns.limit[index] = self._tensor([one.request.max_new_tokens for one in batch])
        columns.count[index] = 0
        logits = self._forward(rows, self._tensor(ids), self._tensor(positions), self._tensor(places),
                               max(len(one.context) for one in batch))
        for one in batch:
            self._keep_prompt(one)
        self._take_tokens(rows, logits)

    def _keep_prompt(self, one: _Sequence) -> None:
        """Remember a first prompt, for the other members of its group."""
        if one.kept.pieces or len(one.context) < 2:
            return
        assert self.cache is not None
        count = len(one.context) - 1  # the last token has to be read for what comes behind it
        piece = self.cache.take(one.row, 0, count)
        one.kept = Kept(one.context[:count], [piece], piece.nbytes)
        self.kept.keep(one.context.tobytes(), one.kept)

    # Tokens are sampled.

    def _decode(self) -> None:
        """Read the last token of each row and draw the next one."""
        rows = slice(0, len(self._rows))
        columns = self._columns
        positions = columns.length[rows, None].clone()
        columns.length[rows] += 1
        logits = self._forward(rows, columns.last[rows, None], positions, positions, int(positions.max()) + 1)
        self._take_tokens(rows, logits)

    def _forward(self, rows: slice | Tensor, ids: Tensor, positions: Tensor, places: Tensor, end: int) -> Tensor:
        """Logits behind the last column, [batch, vocabulary]; each token sees those of its row up to its position."""
        assert self.cache is not None
        self.cache.aim(rows, places, end)
        mask = torch.arange(end, device=ids.device) <= positions[:, None, :, None]  # [batch, 1, new, read]
        if self.model.config._attn_implementation != "sdpa" or ids.device.type == "cpu":
            # It is added, by torch's kernel for CPUs too, which would make this of it in each layer.
            mask = torch.zeros_like(mask, dtype=self.shape.dtype).masked_fill_(~mask, torch.finfo(self.shape.dtype).min)
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True,
                                    past_key_values=self.cache, logits_to_keep=1).logits
        return logits[:, -1].float()

    def _take_tokens(self, rows: slice | Tensor, logits: Tensor) -> None:
        """Draw a token for each of these rows, write it down, and let those go whose turn is over."""
        columns = self._columns
        index = columns.index(rows)
        count = columns.count[index]
        tokens, columns.logprobs[index, count], columns.sampling_logprobs[index, count] = draw(
            logits, self.sampling, columns.uniform[index, count])
        columns.ids[index, count] = columns.last[index] = tokens
        columns.count[index] = count + 1
        over = (count + 1 >= columns.limit[index]) | torch.isin(tokens, self._stop_ids)
        for row in index[over].tolist():
            self._let_go(row)

    def _let_go(self, row: int) -> None:
        """A turn is over: make its sample, and keep what its episode's next turn begins with."""
        one, columns = self._rows[row], self._columns
        assert one is not None
        assert self.cache is not None
        count = int(columns.count[row])
        ids = columns.ids[row, :count].tolist()
        logprobs, sampling_logprobs = (values[row, :count].cpu().numpy().copy()
                                       for values in (columns.logprobs, columns.sampling_logprobs))
        self._ended.append((one.number, Sample(ids, logprobs, sampling_logprobs, ended=ids[-1] in self._stops)))
        if one.request.episode is not None:
            read = np.concatenate([one.context, np.asarray(ids[:-1], np.int32)])
            piece = self.cache.take(row, len(one.kept.token_ids), len(read))
            self.kept.keep(one.request.episode, one.kept.extended(read, piece, one.shared))
        self._rows[row] = None

    def _close_gaps(self) -> None:
        """Rows that run stand together at the front: the last ones move into the places of those that ended."""
        for row in [row for row, one in enumerate(self._rows) if one is None]:
            while self._rows and self._rows[-1] is None:
                self._rows.pop()
            if row >= len(self._rows):
                return
            assert self.cache is not None
            last = len(self._rows) - 1
            self.cache.move(last, row, int(self._columns.length[last]))
            self._columns.move(last, row)
            self._rows[row] = self._rows.pop()

    def _rows_of(self, batch: Sequence[_Sequence]) -> slice | Tensor:
        """A slice where they stand side by side, which spares a copy."""
        rows = [one.row for one in batch]
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return slice(rows[0], rows[0] + len(rows))
        return self._tensor(rows)

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self.shape.device)


class _Columns:
    """What is known of each row: its random numbers, what was sampled, and how far it has come."""

    def __init__(self, rows: int, new_tokens: int, device: torch.device) -> None:
        def zeros(dtype: torch.dtype, *size: int) -> Tensor:
            return torch.zeros(rows, *size, dtype=dtype, device=device)

        self.uniform = zeros(torch.float64, new_tokens)  # [rows, new tokens], as are the next three
        self.ids = zeros(torch.long, new_tokens)
        self.logprobs = zeros(torch.float32, new_tokens)
        self.sampling_logprobs = zeros(torch.float32, new_tokens)
        self.last = zeros(torch.long)  # [rows]: the token sampled last, which the model has not read yet
        self.length = zeros(torch.long)  # [rows]: tokens that the model has read
        self.count = zeros(torch.long)  # [rows]: tokens sampled
        self.limit = zeros(torch.long)  # [rows]: tokens that may be sampled

    def grow(self, rows: int, new_tokens: int) -> None:
        """Make room for so many rows and tokens a turn."""
        old_rows, old_tokens = self.uniform.shape
        if rows <= old_rows and new_tokens <= old_tokens:
            return
        larger = _Columns(max(rows, old_rows), max(new_tokens, old_tokens), self.uniform.device)
        for name, old in vars(self).items():
            getattr(larger, name)[tuple(slice(0, n) for n in old.shape)] = old
        vars(self).update(vars(larger))

    def move(self, source: int, row: int) -> None:
        """Copy a row to another place."""
        for values in vars(self).values():
            values[row] = values[source]

    def index(self, rows: slice | Tensor) -> Tensor:
        """The rows' numbers."""
        return torch.arange(rows.start, rows.stop, device=self.last.device) if isinstance(rows, slice) else rows
