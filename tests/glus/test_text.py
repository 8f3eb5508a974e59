"""Prompts and ids are those that GLUS was trained with, and what cannot be asked is refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from glus.errors import CheckpointError, PromptError
from glus.processing import (
    IMAGE_ID,
    MAX_EXPRESSION,
    clean_expression,
    expand_images,
    prompt_ids,
    prompt_text,
    split_prefix,
)
from glus.tokenizer import Tokenizer

ORACLE = Path(__file__).parents[1] / "data" / "oracle"
TEXT = json.loads((ORACLE / "text.json").read_text(encoding="utf-8"))
RECORDING = Path(os.environ.get("GLUS_ORACLE", "/nonexistent"))

ADDED = {"[SEG]": 100, "<im_start>": 101, "<im_end>": 102}
CONTROL = {"<unk>": 0, "<s>": 1, "</s>": 2}


def answered(entry):
    """What `prompt_text` is told about the earlier frames of a recorded prompt."""
    earlier = min(entry["frame"], 3)
    return [frame not in entry["frames_without_seg"] for frame in range(entry["frame"] - earlier, entry["frame"])]


@pytest.fixture(scope="module")
def llama_tokenizer():
    folder = RECORDING / "glus-tiny"
    if not (folder / "tokenizer.model").is_file():
        pytest.skip("GLUS_ORACLE names no full recording with LLaMA's vocabulary")
    return Tokenizer.from_folder(folder)


@pytest.fixture
def spelling():
    """Every stretch that is encoded, and a tokenizer that gives each the id 10, 11, ..."""
    stretches: list[str] = []

    def encode(stretch: str) -> list[int]:
        stretches.append(stretch)
        return [9 + len(stretches)]

    return stretches, Tokenizer(encode, ADDED, CONTROL)


def check_inference(entry, tokenizer):
    text = prompt_text(clean_expression(entry["expression"], tokenizer.reserved), answered(entry))
    ids = prompt_ids(tokenizer, text)
    assert text == entry["prompt"]
    assert ids == entry["input_ids"]
    prefix, window = split_prefix(ids, context_frames=4)
    assert prefix + window == ids
    assert (prefix.count(IMAGE_ID), window.count(IMAGE_ID)) == (4, 1 + len(answered(entry)))
    assert (len(prefix), len(expand_images(prefix, 64))) == (57, 309)  # what all expressions share
    assert window[:3] == [tokenizer.added["<im_start>"], IMAGE_ID, tokenizer.added["<im_end>"]]


@pytest.mark.parametrize("entry", TEXT["inference"], ids=lambda e: f"{e['expression'][:24]}-{e['frame']}")
def test_recorded_prompts_of_inference(entry, recorded_tokenizer):
    check_inference(entry, recorded_tokenizer)


def test_the_recording_holds_missed_answers_and_all_window_lengths():
    assert {min(e["frame"], 3) for e in TEXT["inference"]} == {0, 1, 3}
    assert any(not all(answered(e)) for e in TEXT["inference"])
    assert len({e["expression"] for e in TEXT["inference"]}) >= 10


@pytest.mark.parametrize("number", range(len(TEXT["training"])))
def test_recorded_prompts_of_training(number, recorded_tokenizer):
    entry = TEXT["training"][number]
    ids = prompt_ids(recorded_tokenizer, entry["prompt"])
    assert ids == entry["input_ids"][: len(ids)]
    assert not any(entry["input_ids"][len(ids) :])  # padding only


def test_recorded_prompts_with_the_real_vocabulary(llama_tokenizer):
    text = json.loads((RECORDING / "cases/text.json").read_text(encoding="utf-8"))
    assert len(text["inference"]) >= 30
    for entry in text["inference"]:
        check_inference(entry, llama_tokenizer)
    for entry in text["training"]:
        ids = prompt_ids(llama_tokenizer, entry["prompt"])
        assert ids == entry["input_ids"][: len(ids)]
        assert not any(entry["input_ids"][len(ids) :])


def test_the_recorded_stretches_are_the_real_vocabularys(llama_tokenizer):
    for stretch, ids in TEXT["stretches"].items():
        assert llama_tokenizer.encode(stretch) == ids


@pytest.mark.parametrize("expression", ["a café", "红色的车", "the 🐱", "tab\tand\nnewline", "a \x00 b", "x" * 300])
def test_any_text_has_ids_in_the_real_vocabulary(llama_tokenizer, expression):
    ids = llama_tokenizer.encode(expression)
    assert ids
    assert all(0 < i < 32000 for i in ids)


# ---- the rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stretches", "ids"),
    [
        ("is [SEG].", ["is", "."], [10, 100, 11]),  # stripped before an added token
        ("is[SEG] .", ["is", "."], [10, 100, 11]),  # and behind it
        ("<im_end>\n Can", ["Can"], [102, 10]),  # any white space, any amount
        ("[SEG] \n <im_start>", [], [100, 101]),  # nothing is left between two
        ("[SEG][SEG]", [], [100, 100]),
        ("a </s> b", ["a ", " b"], [10, 2, 11]),  # not stripped beside a control token
        ("[SEG] </s> b", [" b"], [100, 2, 10]),  # the side of the added token only
        ("[SEG] a </s>", ["a "], [100, 10, 2]),
        ("</s> a [SEG]", [" a"], [2, 10, 100]),
        ("a b", ["a b"], [10]),
        (" a ", [" a "], [10]),  # the ends of the text keep theirs
        ("", [], []),
        ("<s>", [], [1]),
        ("[seg] <IM_END>", ["[seg] <IM_END>"], [10]),  # tokens are case sensitive
    ],
)
def test_white_space_beside_tokens(text, stretches, ids, spelling):
    seen, tokenizer = spelling
    assert tokenizer.encode(text) == ids
    assert seen == stretches


def test_the_longest_of_overlapping_tokens_wins():
    tokenizer = Tokenizer(lambda s: [9], ADDED | {"[SEG][SEG]": 103}, CONTROL)
    assert tokenizer.encode("[SEG][SEG]") == [103]


def test_images_are_cut_out_and_bos_comes_once(spelling):
    seen, tokenizer = spelling
    assert prompt_ids(tokenizer, "a<image>b<image>") == [1, 10, IMAGE_ID, 11, IMAGE_ID]
    assert seen == ["a", "b"]


def test_expanding_repeats_images_only():
    assert expand_images([1, IMAGE_ID, 5, IMAGE_ID], 3) == [1, *[IMAGE_ID] * 3, 5, *[IMAGE_ID] * 3]


def test_a_missed_answer_changes_the_text_but_no_id(recorded_tokenizer):
    texts = [prompt_text("a person", [True, found, True]) for found in (True, False)]
    assert texts[0] != texts[1]
    assert prompt_ids(recorded_tokenizer, texts[0]) == prompt_ids(recorded_tokenizer, texts[1])


def test_braces_in_an_expression_are_plain_text():
    assert "segment the {x} {0} in" in prompt_text("{x} {0}", [])


# ---- expressions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "cleaned"),
    [
        ("The Dog.", "the dog"),
        ("the dog..", "the dog."),  # one dot only
        ("v. 2 of it", "v. 2 of it"),
        ("a", "a"),
        ("ÉTÉ", "été"),
        ("the dog. ", "the dog. "),  # as in training: the dot is not the last character
    ],
)
def test_cleaning(expression, cleaned):
    assert clean_expression(expression) == cleaned


@pytest.mark.parametrize("expression", ["", " ", "\n\t ", ".", "...", " . ", ". .", "\u00a0", "\u3000."])
def test_nothing_to_segment(expression):
    with pytest.raises(PromptError, match="empty") as caught:
        clean_expression(expression)
    assert "say what to segment" in str(caught.value)


@pytest.mark.parametrize(
    "token", ["<image>", "[SEG]", "<im_start>", "<im_end>", "<s>", "</s>", "<unk>", "[seg]", "<IMAGE>"]
)
def test_reserved_tokens(token, recorded_tokenizer):
    with pytest.raises(PromptError, match="reserves"):
        clean_expression(f"a dog {token} there", recorded_tokenizer.reserved)


@pytest.mark.parametrize("expression", [None, 3, b"dog", ["dog"], 1.5])
def test_not_a_string(expression):
    with pytest.raises(PromptError, match=type(expression).__name__):
        clean_expression(expression)


def test_the_longest_expression():
    assert len(clean_expression("x" * MAX_EXPRESSION)) == MAX_EXPRESSION
    with pytest.raises(PromptError, match=f"{MAX_EXPRESSION + 1} characters"):
        clean_expression("x" * (MAX_EXPRESSION + 1))


def test_an_expression_that_overflows_the_window(tiny_model, oracle_frames):
    import glus

    expression = "eio" * 300  # four questions of it are in a window, each of nearly as many ids as letters
    with pytest.raises(PromptError, match="2048") as caught:
        glus.VideoSession(tiny_model, expression, oracle_frames[:4])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("expression", ["el niño", "红色的车", "the 🐱", "a \x00 b", "half a pair \ud83d"])
def test_odd_characters_are_asked_or_refused(expression, tiny_model, oracle_frames):
    import glus

    try:
        session = glus.VideoSession(tiny_model, expression, oracle_frames[:4])
    except PromptError as error:
        assert "\ud83d" in expression
        assert "half a character" in str(error)  # noqa: PT017
    else:
        assert len(session.step(oracle_frames[0])) == 1


# ---- vocabulary files -----------------------------------------------------------------------------------------------


@pytest.fixture
def vocabulary(tiny_checkpoint, tmp_path):
    for name in ("tokenizer.model", "added_tokens.json"):
        shutil.copyfile(tiny_checkpoint / name, tmp_path / name)
    return tmp_path


def test_a_vocabulary_and_its_files(vocabulary):
    tokenizer = Tokenizer.from_folder(vocabulary)
    assert tokenizer.files == {
        name: (vocabulary / name).read_bytes() for name in ("tokenizer.model", "added_tokens.json")
    }
    assert tokenizer.bos_id == 1
    assert set(tokenizer.reserved) == {"[SEG]", "<im_start>", "<im_end>", "<unk>", "<s>", "</s>"}


def test_missing_vocabulary(vocabulary):
    (vocabulary / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is missing"):
        Tokenizer.from_folder(vocabulary)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n", None],
)
def test_damaged_vocabulary(vocabulary, content):
    path = vocabulary / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        Tokenizer.from_folder(vocabulary)


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", '{"[SEG]": "x"}', '{"[SEG]": [1]}', '{"[SEG]": null}', "\ufeff"]
)
def test_damaged_added_tokens(vocabulary, content):
    (vocabulary / "added_tokens.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"added_tokens\.json is not"):
        Tokenizer.from_folder(vocabulary)


def test_added_tokens_without_seg(vocabulary):
    (vocabulary / "added_tokens.json").write_text('{"<im_start>": 5, "<im_end>": 6}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"no token \[SEG\]"):
        Tokenizer.from_folder(vocabulary)


def test_no_added_tokens_at_all(vocabulary):
    (vocabulary / "added_tokens.json").unlink()  # nor has the sentencepiece model any
    with pytest.raises(CheckpointError, match=r"\[SEG\], <im_start>, <im_end>"):
        Tokenizer.from_folder(vocabulary)
