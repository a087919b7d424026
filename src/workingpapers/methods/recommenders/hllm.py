"""HLLM: one language model turns an item's text into a vector, a second reads these vectors and predicts the next.

    item     text -> tokens, at most L; [ITEM], a free input vector, follows;   E = last hidden state at [ITEM]    (d,)
             or, with mean pooling, E = mean of the last hidden states, and no [ITEM]
    user     (E_1 .. E_n) takes the place of word vectors in a causal model;   its states P_i predict E_{i+1}   (n, d)
    loss     cross-entropy of e^g cos(P_i, E_{i+1}) against e^g cos(P_i, E_k) of N items k, drawn uniformly, shared by
             the batch; g learned, within [0, ln 100]; an E_k with cos(E_{i+1}, E_k) > 0.99 is the same item: left out
    serving  all E once, then cos(P_n, E) over the catalogue

Both models train; item vectors get gradients as inputs, as targets and as negatives, and each distinct item of a batch
is encoded once. [ITEM] always stands at position L, which only models with learned positions notice. Short texts share
rows under a mask that parts them. Histories are padded at their end, which a causal model cannot see.

Two other heads rank a given candidate c and train on clicks, with binary cross-entropy + lambda * loss:

    early    the user model reads (E_1 .. E_n, E_c); the logit is linear in its last state
    late     it reads (E_1 .. E_n, [USER]), a free vector last; the logit is MLP(u, E_c, u * E_c), u its last state

Source: Chen et al., "HLLM: Enhancing Sequential Recommendations via Hierarchical Large Language Models for Item and
User Modeling", 2024, arXiv 2409.12740, and the authors' published code. That code has the generative head alone: the
last layers of the other two and the weight lambda are this project's choice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from workingpapers.methods.recommenders.hllm_encoders import Items, whole_numbers
from workingpapers.methods.recommenders.hllm_network import HLLMNetwork
from workingpapers.methods.recommenders.options import as_json, check_types
from workingpapers.methods.recommenders.training import training_progress

FORMAT = "workingpapers hllm 1"
SERVED = 256  # histories that are read together

Histories = Sequence[Sequence[int]]


class HLLM(HLLMNetwork):
    """An item model and a user model, trained together to recommend; see `HLLMNetwork` for the options.

    Attributes:
        loss_history: mean loss of each epoch of the last `fit`.
    """

    loss_history: list[float]

    def fit(
        self,
        items: Items,
        histories: Histories,
        *,
        candidates: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        epochs: int = 5,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        batch_size: int = 128,
        seed: int = 0,
    ) -> Self:
        """Train from the present weights on, with AdamW and a cosine schedule after 10 % of warm-up, as published.

        Args:
            items: N texts, or N sequences of token ids of the item model.
            histories: for each user, numbers of items 0 .. N-1, the latest last. For the generative head long ones are
                cut into parts of `max_history` + 1; the others read the last `max_history`.
            candidates, labels: the item that was shown after each history and whether it was taken, 0 or 1; for the
                heads that rank.
            epochs, learning_rate, weight_decay, batch_size: 5, 1e-4, 0.01 and 128 histories, as published for books.
            seed: of order and negatives.

        Raises:
            ValueError: items, histories, candidates or labels that do not fit, an option outside its range, a loss
                that is not finite, or item vectors all so alike that no negative is left.
        """
        rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
        check_types(HLLM.fit, {"epochs": epochs, "batch_size": batch_size, "seed": seed} | rates)
        if min(epochs, batch_size) < 1 or not 0 < learning_rate < math.inf or not 0 <= weight_decay < math.inf:
            raise ValueError(
                f"epochs is {epochs}, batch_size {batch_size}, learning_rate {learning_rate} and weight_decay "
                f"{weight_decay}; need >= 1, >= 1, > 0 and >= 0, all finite"
            )
        tokens = self.item.tokens(items)
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller is in
            rows, extra = self._training_rows(histories, len(tokens), candidates, labels)
            fixed = self.item.encode(tokens) if self.options["freeze_item"] else None
            steps = epochs * math.ceil(len(rows) / batch_size)
            optimizer, schedule = _optimizer(self, steps, learning_rate, weight_decay)
            generator = torch.Generator().manual_seed(int(seed))
            self.loss_history = []
            self.train()
            with training_progress(epochs, len(rows)) as told:
                for epoch in range(1, epochs + 1):
                    total, kept = 0.0, 0.0
                    order = torch.randperm(len(rows), generator=generator)
                    for part in told(epoch - 1, torch.split(order, int(batch_size))):
                        loss, logs = self._batch_loss(tokens, fixed, rows[part], [x[part] for x in extra], generator)
                        optimizer.zero_grad(set_to_none=True)
                        loss.backward()  # type: ignore[no-untyped-call]
                        optimizer.step()
                        schedule.step()
                        total, kept = total + float(loss.detach()) * len(part), kept + float(logs["negatives"])
                    self.loss_history.append(total / len(rows))
                    _check_epoch(epoch, total, kept, rows)
            self.eval()
            return self._set_index(tokens if fixed is None else fixed)

    def _batch_loss(
        self,
        tokens: list[list[int]],
        fixed: Tensor | None,
        rows: Tensor,
        extra: list[Tensor],
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of rows of histories, for which each distinct item is encoded once, or taken from `fixed`."""
        drawn = torch.unique(rows[rows >= 0])
        if self.num_negatives is not None:
            drawn = torch.randint(len(tokens), (self.num_negatives,), generator=generator)
        inputs = [rows, drawn, *extra[:1]]
        needed = torch.unique(torch.cat([x.flatten() for x in inputs]))
        needed = needed[needed >= 0]
        device = self.log_scale.device
        local = [torch.where(x < 0, -1, torch.searchsorted(needed, x.clamp(min=0))).to(device) for x in inputs]
        local += [x.to(device) for x in extra[1:]]
        if fixed is None:
            return self([tokens[i] for i in needed.tolist()], *local)
        return self.loss(self.adapter(fixed[needed.to(device)]), *local)

    def _training_rows(
        self, histories: Histories, count: int, candidates: Sequence[int] | None, labels: Sequence[int] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return histories (M, n), padded with -1, and candidates and labels (M,) where the head ranks."""
        checked = _checked_histories(histories, count)
        if self.head != "generative":
            if candidates is None or labels is None or not len(candidates) == len(labels) == len(checked):
                raise ValueError(
                    f"head {self.head!r} needs a candidate and a label for each of {len(checked)} histories"
                )
            target, label = _checked_items("candidates", candidates, count), np.asarray(labels)
            if not np.isin(label, (0, 1)).all():
                raise ValueError(f"labels must be 0 or 1; got {sorted(set(label.tolist()))[:5]}")
            return self._padded(checked), [target, torch.as_tensor(label)]
        if candidates is not None or labels is not None:
            raise ValueError(
                "the generative head learns from histories alone; candidates and labels are for the others"
            )
        size = self.max_history + 1
        parts = [h[max(end - size, 0) : end] for h in checked for end in range(len(h), 1, -size)]
        parts = [part for part in parts if len(part) > 1]
        if not parts:
            raise ValueError("no history holds two items, so there is no next one to learn from")
        return pad_sequence(parts, batch_first=True, padding_value=-1), []

    def _padded(self, histories: list[Tensor]) -> Tensor:
        return pad_sequence([h[-self.max_history :] for h in histories], batch_first=True, padding_value=-1)

    def set_items(self, items: Items) -> Self:
        """Encode a catalogue, that of `fit` or another one with new items, and keep its vectors for serving."""
        return self._set_index(self.item.tokens(items))

    @torch.no_grad()
    def _set_index(self, found: Tensor | list[list[int]]) -> Self:
        self.index = self.adapter(found if isinstance(found, Tensor) else self.item.encode(found))
        return self

    @torch.no_grad()
    def scores(self, histories: Histories) -> Tensor:
        """Return the cosines (B, N) of what is expected after each history and every item of the catalogue.

        Raises:
            ValueError: no catalogue yet, a head that ranks, or histories that are empty or name other items.
        """
        if self.head != "generative":
            raise ValueError(f"head {self.head!r} ranks given candidates; use predict_proba")
        rows = self._served(histories)
        self.eval()
        catalogue = F.normalize(self.index, dim=-1)
        parts = []
        for part in torch.split(rows, SERVED):
            states = self.user(self.index[part.clamp(min=0)])
            last = states[torch.arange(len(part), device=part.device), (part >= 0).sum(dim=1) - 1]
            parts.append(F.normalize(last, dim=-1) @ catalogue.mT)
        return torch.cat(parts)

    def recommend(self, histories: Histories, k: int = 10, *, exclude_seen: bool = True) -> tuple[Tensor, Tensor]:
        """Return the k best items for each history and their cosines, both (B, k), the best first.

        Raises:
            ValueError: as `scores`; or k items are more than there are, or than are unseen.
        """
        check_types(HLLM.recommend, {"k": k})
        found = self.scores(histories)
        if exclude_seen:
            for row, history in zip(found, histories, strict=True):
                row[torch.as_tensor(np.asarray(history, np.int64), device=row.device)] = -torch.inf
        left = int(torch.isfinite(found).sum(dim=1).min())
        if not 1 <= k <= left:
            raise ValueError(f"k is {k}; it must lie between 1 and {left}, the items that are left to recommend")
        best, items = found.topk(k, dim=1)
        return items, best

    @torch.no_grad()
    def predict_proba(self, histories: Histories, candidates: Sequence[int]) -> Tensor:
        """Return the probability (B,) that each candidate is taken after its history, by the heads that rank."""
        if self.head == "generative":
            raise ValueError("the generative head gives no probabilities; use scores or recommend")
        rows = self._served(histories)
        target = _checked_items("candidates", candidates, len(self.index)).to(rows.device)
        if len(target) != len(rows):
            raise ValueError(f"there are {len(rows)} histories but {len(target)} candidates")
        self.eval()
        parts = [
            self._ranked(self.index[part.clamp(min=0)], part >= 0, self.index[shown])[1]
            for part, shown in zip(torch.split(rows, SERVED), torch.split(target, SERVED), strict=True)
        ]
        return torch.cat(parts).sigmoid()

    def _served(self, histories: Histories) -> Tensor:
        if not len(self.index):
            raise ValueError("there is no catalogue yet; call fit or set_items")
        return self._padded(_checked_histories(histories, len(self.index))).to(self.index.device)

    def save(self, folder: str | Path) -> None:
        """Write the models, the tokenizer, all other weights, the cached vectors and the options into a folder."""
        from safetensors.torch import save_file

        text = as_json({"format": FORMAT, "options": self.options, "tokenizer": self.item.tokenizer is not None})
        place = Path(folder)
        self.item.body.save_pretrained(place / "item")
        self.user.body.save_pretrained(place / "user")
        if self.item.tokenizer is not None:
            self.item.tokenizer.save_pretrained(place / "item")
        save_file(self._rest(), str(place / "model.safetensors"))
        (place / "model.json").write_text(text, encoding="utf-8")

    def _rest(self) -> dict[str, Tensor]:
        """Return what belongs to neither language model."""
        of_models = ("item.body.", "user.body.")
        return {name: x.contiguous() for name, x in self.state_dict().items() if not name.startswith(of_models)}

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Return the model that `save` wrote.

        Raises:
            ValueError: not such a folder.
            FileNotFoundError: no folder.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoModel, AutoTokenizer

        place = Path(folder)
        try:
            held = json.loads((place / "model.json").read_text(encoding="utf-8"))
            options, has_tokenizer, found = held["options"], held["tokenizer"], held["format"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no HLLM: {error!r}") from error
        if found != FORMAT:
            raise ValueError(f"{folder} holds {found!r}; expected {FORMAT!r}")
        try:
            rest = load_file(str(place / "model.safetensors"))
            item, user = (AutoModel.from_pretrained(place / name, local_files_only=True) for name in ("item", "user"))
        except SafetensorError as error:
            raise ValueError(f"the weights in {folder} are damaged: {error}") from error
        tokenizer = AutoTokenizer.from_pretrained(place / "item", local_files_only=True) if has_tokenizer else None
        try:
            self = cls(item, user, tokenizer, **options)
        except TypeError as error:
            raise ValueError(f"{folder} holds no HLLM: {error}") from error
        if rest.keys() != self._rest().keys():
            raise ValueError(f"{folder} holds the weights {sorted(rest)}; expected {sorted(self._rest())}")
        self.index = rest["index"]
        self.load_state_dict(rest, strict=False)  # the language models have theirs already
        return self.eval()


def _checked_items(name: str, items: Any, count: int) -> Tensor:
    """Return numbers of items as a tensor."""
    found = whole_numbers(items)
    if found is None or not len(found):
        raise ValueError(f"{name} must hold numbers of items, one or more; got {items!r}")
    if found.min() < 0 or found.max() >= count:
        raise ValueError(f"{name} holds {found.min()} to {found.max()}; the items are 0 to {count - 1}")
    return torch.from_numpy(found)


def _checked_histories(histories: Histories, count: int) -> list[Tensor]:
    if not len(histories):
        raise ValueError("there are no histories")
    return [_checked_items(f"history {i}", h, count) for i, h in enumerate(histories)]


def _optimizer(
    model: nn.Module, steps: int, learning_rate: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, Any]:
    """Return AdamW and the schedule of its rate."""
    from transformers import get_cosine_schedule_with_warmup

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)


def _check_epoch(epoch: int, total: float, kept: float, rows: Tensor) -> None:
    """Raise ValueError if the epoch's loss says nothing."""
    if not math.isfinite(total):
        raise ValueError(f"the loss of epoch {epoch} is {total}; try a smaller learning_rate")
    if kept == 0 and (rows[:, 1:] >= 0).any():
        raise ValueError(
            f"no negative was left in epoch {epoch}: cosines between the vectors of all items lie above dup_threshold; "
            "raise it, or use mean pooling or another item_lm"
        )
