"""Log-likelihood of plain text, document by document.

B rows, T tokens.
"""

import dataclasses

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.data.encode import Encoded
from moe_jax.data.packing import documents_of_rows, pack
from moe_jax.evals.scores import Scores
from moe_jax.inference.score import score


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Packed documents and, for every token, which document it belongs to (-1: padding)."""

    packed: dict[str, np.ndarray]
    document_BT: np.ndarray
    ids: tuple[str, ...]
    groups: tuple[str, ...]

    @classmethod
    def encode(
        cls, encoded: Encoded, ids: tuple[str, ...], groups: tuple[str, ...], length: int
    ) -> 'Texts':
        """Documents, with an id and a group each, packed into rows of T=`length` tokens."""
        return cls(pack(encoded, length), documents_of_rows(encoded, length), ids, groups)


def evaluate(cfg: Config, params: Params, texts: Texts, *, rows: int = 32) -> Scores:
    """Mean log-probability per token of each document, weighted by its number of tokens.

    Every token but a document's first is scored once, given up to T-1 tokens before it.
    """
    packed, count = texts.packed, len(texts.packed['tokens'])
    total, weight = np.zeros(len(texts.ids)), np.zeros(len(texts.ids))
    for first in range(0, count, rows):
        part = {k: np.pad(packed[k][first:first + rows],
                          ((0, max(0, first + rows - count)), (0, 0))) for k in packed}
        log_probs = np.asarray(score(cfg, params, part['tokens'], part['segments']), np.float64)
        used = part['weights'][:, 1:] > 0
        document = texts.document_BT[first:first + rows, 1:][used[:count - first]]
        np.add.at(total, document, log_probs[used])
        np.add.at(weight, document, 1.0)
    seen = np.flatnonzero(weight)
    return Scores(
        ids=tuple(texts.ids[i] for i in seen),
        groups=tuple(texts.groups[i] for i in seen),
        log_likelihood=total[seen] / weight[seen],
        weight=weight[seen],
    )
