"""SigLIP's tokenizers as files of `tokenizers`, which is all that a robot has.

Invariant: texts get the ids that transformers' `SiglipTokenizer` gives them with sentencepiece, and
SigLIP 2's are lowercased, as both were trained.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, processors
from transformers.convert_slow_tokenizer import import_protobuf

from .public import PublicError, line

FILE = "spiece.model"
SPACE = "▁"
END = "</s>"  # also the padding
UNIGRAM = 1


def read_siglip(file: Path) -> Tokenizer:
    """The tokenizer of SigLIP in sentencepiece's file, with its padding. Raises PublicError."""
    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's DecodeError, where it has one
        raise PublicError(f"{file} is no sentencepiece model: {line(error)}") from error
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    names = [name for name, _ in pieces]
    if model.trainer_spec.model_type != UNIGRAM or END not in names:
        raise PublicError(f"{file} is no sentencepiece model of SigLIP: no unigrams with {END}.")
    tokenizer = Tokenizer(models.Unigram(pieces, model.trainer_spec.unk_id, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(_steps(model.normalizer_spec))
    end = names.index(END)
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {END}", None, [(END, end)])
    tokenizer.enable_padding(pad_id=end, pad_token=END)
    return tokenizer


def lowercased(tokenizer: Tokenizer) -> Tokenizer:
    """SigLIP 2's, which has Gemma's words and was trained on texts in lower case."""
    first = normalizers.Lowercase()
    rest = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([first, *rest])
    return tokenizer


def _steps(spec: Any) -> list[Any]:
    """What becomes of a text before it is cut into pieces: first SigLIP's part, then the model's.

    SigLIP's canonical text has no capitals and no punctuation; a space stands before its first
    word.
    """
    steps: list[Any] = [
        normalizers.Replace(SPACE, " "),
        normalizers.Prepend(SPACE),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(f"[{_escaped(string.punctuation)}]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(left=False, right=True),
    ]
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(False, True)]
    return [*steps, normalizers.Replace(" ", SPACE)]


def _escaped(characters: str) -> str:
    return "".join(f"\\{character}" for character in characters)
