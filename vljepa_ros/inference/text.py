"""Text into token ids and back, with a Hugging Face `tokenizers` file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vljepa_ros.errors import BundleError


class TextTokenizer:
    """Token ids of a fixed length: longer texts are cut, shorter ones padded with mask 0."""

    def __init__(self, path: Path, length: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust side raises plain Exception
            raise BundleError(f"{path} is not a tokenizer file: {error}.") from error
        self._pad_id = (self._tokenizer.padding or {}).get("pad_id", 0)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(length)
        self.length = length

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of N texts, both int64 `[N, length]`; the mask is 1 on real tokens."""
        ids = np.full((len(texts), self.length), self._pad_id, np.int64)
        mask = np.zeros((len(texts), self.length), np.int64)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        return ids, mask

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)).strip()
