"""Text -> ids by the rules that LLaMA's slow tokenizer had when GLUS was trained. Knows strings and ids; not prompts.

Current tokenizers keep the white space round added tokens; the one that GLUS was trained with removed it on both sides
(the newline behind `<im_end>` vanishes, "is [SEG]." becomes `is`, [SEG], `▁.`). Other ids would be another model, so
the rules are written out here, over the plain sentencepiece model:

1. the text is split at the control tokens (`<s>`, `</s>`, `<unk>`) and at the added ones (`[SEG]`, `<im_start>`, ...);
2. a stretch beside an added token loses its white space on that side; beside a control token it keeps it;
3. every stretch left is encoded by itself, so each begins with sentencepiece's dummy prefix.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glus.config import IMAGE_END_TOKEN, IMAGE_START_TOKEN, SEG_TOKEN
from glus.errors import CheckpointError

FILES = (
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


class Tokenizer:
    """Encodes text with added tokens.

    Args:
        encode: ids of one stretch of plain text, dummy prefix included, no BOS: sentencepiece's `encode`.
        added: added tokens and their ids; must hold `[SEG]`, `<im_start>` and `<im_end>`.
        control: control tokens and their ids (`<s>`, `</s>`, `<unk>`).
        files: the vocabulary's files by name, to be written beside saved weights.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        added: Mapping[str, int],
        control: Mapping[str, int],
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        missing = [token for token in (SEG_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN) if token not in added]
        if missing:
            raise CheckpointError(
                f"the vocabulary has no token {', '.join(missing)}; a GLUS checkpoint lists them in added_tokens.json"
            )
        self._encode = encode
        self.files: dict[str, bytes] = dict(files or {})
        self.added = dict(added)
        self.control = dict(control)
        every = sorted([*self.added, *self.control], key=len, reverse=True)
        self._split = re.compile("(" + "|".join(re.escape(token) for token in every) + ")")

    @property
    def reserved(self) -> tuple[str, ...]:
        """Tokens that plain text may not contain."""
        return (*self.added, *self.control)

    @property
    def bos_id(self) -> int:
        """Id of `<s>`."""
        return self.control["<s>"]

    def encode(self, text: str) -> list[int]:
        """Ids of `text` by the rules above, without a BOS."""
        parts = self._split.split(text)  # plain, token, plain, token, ..., plain
        ids: list[int] = []
        for position, part in enumerate(parts):
            if position % 2:
                ids.append(self.added[part] if part in self.added else self.control[part])
                continue
            stretch = part
            if position + 1 < len(parts) and parts[position + 1] in self.added:
                stretch = stretch.rstrip()
            if position > 0 and parts[position - 1] in self.added:
                stretch = stretch.lstrip()
            if stretch:
                ids.extend(self._encode(stretch))
        return ids

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read `tokenizer.model` and `added_tokens.json` of a checkpoint folder.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        import sentencepiece

        model_file = folder / "tokenizer.model"
        if not model_file.is_file():
            raise CheckpointError(
                f"no vocabulary: {model_file} is missing; copy tokenizer.model and added_tokens.json of the checkpoint "
                "beside its weights"
            )
        try:
            processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
        except (RuntimeError, OSError, TypeError) as error:
            raise CheckpointError(
                f"{model_file} is not a sentencepiece model ({str(error).splitlines()[0]}); download it again"
            ) from error
        added = _added_tokens(folder, processor)
        control = {
            processor.id_to_piece(i): i
            for i in (processor.unk_id(), processor.bos_id(), processor.eos_id())
            if i >= 0  # -1: not in this vocabulary
        }
        if "<s>" not in control:
            raise CheckpointError(f"{model_file} has no begin-of-sentence token <s>; GLUS prompts start with it")
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        return cls(processor.encode, added, control, files)


def _added_tokens(folder: Path, processor: Any) -> dict[str, int]:
    listed = folder / "added_tokens.json"
    if listed.is_file():
        try:
            return {str(token): int(i) for token, i in json.loads(listed.read_text(encoding="utf-8")).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{listed} is not a JSON object of token: id; download it again") from error
    # a vocabulary may hold the tokens itself, as user-defined pieces
    pieces = {token: processor.piece_to_id(token) for token in (SEG_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN)}
    return {token: i for token, i in pieces.items() if i != processor.unk_id()}
