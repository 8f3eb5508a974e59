"""Streaming: one pass equals step by step, sessions never meet, what is held is bounded, a cut can be resumed."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

import glus
from glus.config import GlusConfig, MemoryConfig
from glus.errors import PromptError, SettingError, VideoError
from glus.masks import NO_OBJECT_LOGIT, FrameMask
from glus.miniature import write_miniature
from glus.modeling.segmenter import Segmenter
from glus.streaming import Segmentation, VideoSession
from glus.video import FrameArrays

DOG, CAT, CAR = "the dog on the left", "the cat", "the car that stops"
NEAR = 1e-6  # of logits up to 40, in double precision, where batches of another size add up in another order


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """At this size a second thread of torch gains nothing, and where others work too it loses much by waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "glus-64"
    return glus.load(write_miniature(folder, GlusConfig.tiny(image_size=64)), memory_fuser_gamma="checkpoint")


@pytest.fixture(scope="module")
def precise(tmp_path_factory):
    """The same in double precision: what is equal up to rounding is then equal in all digits of the float32 logits."""
    folder = tmp_path_factory.mktemp("precise") / "glus-64"
    write_miniature(folder, GlusConfig.tiny(image_size=64))
    return glus.load(folder, memory_fuser_gamma="checkpoint").double()


def clip(length: int, seed: int = 0, size: tuple[int, int] = (24, 32)) -> list[np.ndarray]:
    """Noise that differs from frame to frame, with a bright square that wanders."""
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 120, (*size, 3), dtype=np.uint8) for _ in range(length)]
    for number, frame in enumerate(frames):
        at = (seed + 2 * number) % max(1, size[1] - 6)
        frame[4:12, at : at + 6] += 120
    return frames


def context(model, frames):
    return [frames[i] for i in glus.processing.context_indices(len(frames), model.config.window.context_frames)]


def session(model, frames, expressions=DOG, **options):
    return VideoSession(model, expressions, context(model, frames), **options)


def same(got: FrameMask, wanted: FrameMask) -> bool:
    return (
        (got.frame_index, got.expression_index, got.present)
        == (wanted.frame_index, wanted.expression_index, wanted.present)
        and np.array_equal(got.mask, wanted.mask)
        and np.array_equal(got.logits, wanted.logits)
        and got.score == wanted.score
    )


def assert_same(got, wanted):
    """Equal in every bit."""
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert same(one, other), (one.frame_index, np.abs(one.logits - other.logits).max())


def assert_near(got, wanted):
    """Equal up to rounding; where a logit is within rounding of zero a pixel may differ."""
    assert [m.frame_index for m in got] == [m.frame_index for m in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert np.abs(one.logits - other.logits).max() < NEAR
        assert abs(one.score - other.score) < NEAR
        assert (one.mask != other.mask).mean() < 0.02


@contextmanager
def answers(model, missing):
    """[SEG] is not answered at the given numbers of calls of the language model's head (one a frame and expression)."""
    asked = 0
    original = model.language.seg_answer

    def seg_answer(states):
        nonlocal asked
        found, confidence = original(states)
        for row in range(len(found)):
            found[row] &= asked not in missing
            asked += 1
        return found, confidence

    model.language.seg_answer = seg_answer
    try:
        yield
    finally:
        del model.language.seg_answer


def test_the_miniature_can_tell_frames_memory_and_expressions_apart(model):
    """Without this the equalities below would prove nothing."""
    frames = clip(6)
    first = list(glus.segment(model, frames, DOG))
    for other in (
        list(glus.segment(model, clip(6, seed=1), DOG)),
        list(glus.segment(model, frames, DOG, memory=False))[1:],
        list(glus.segment(model, frames, DOG, context_frames=[0, 0, 0, 0])),
        list(glus.segment(model, frames, CAT)),
    ):
        for one, two in zip(first[-len(other) :], other, strict=True):
            assert np.abs(one.logits - two.logits).max() > 1, one.frame_index
    assert all(m.present for m in first)
    assert len({m.mask.sum() for m in first}) == 6


# ---- the same, however it is asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False])
def test_streaming_equals_one_pass(model, memory):
    frames = clip(24)
    one_pass = list(glus.segment(model, frames, DOG, memory=memory))
    streamed = session(model, frames, memory=memory)
    assert_same([mask for frame in frames for mask in streamed.step(frame)], one_pass)
    assert streamed.next_frame == streamed.steps_done == 24


def test_streaming_equals_one_pass_at_the_miniatures_own_size(tiny_model, oracle_frames):
    frames = oracle_frames[:7]
    streamed = session(tiny_model, frames)
    assert_same([streamed.step(f)[0] for f in frames], list(glus.segment(tiny_model, frames, DOG)))


def test_twice_is_the_same(model):
    assert_same(list(glus.segment(model, clip(8), DOG)), list(glus.segment(model, clip(8), DOG)))


@pytest.mark.parametrize("sizes", [(11,), (1, 2, 3, 5), (5, 5, 1), (4, 0, 7)])
def test_several_frames_in_a_step_equal_one_by_one(precise, sizes):
    frames = clip(11)
    one_by_one = session(precise, frames)
    wanted = [one_by_one.step(frame)[0] for frame in frames]
    together, rows, left = session(precise, frames), [], list(frames)
    for size in sizes:
        part, left = left[:size], left[size:]
        rows += together.steps(part)
    assert not left
    assert_near([mask for row in rows for mask in row], wanted)
    assert together.memories == one_by_one.memories


@pytest.mark.parametrize("chunk", [1, 2, 4, 50])
def test_run_in_chunks_equals_one_by_one(precise, chunk):
    frames = clip(9)
    wanted = list(session(precise, frames, [DOG, CAT]).run(iter(frames), 1))
    got = list(session(precise, frames, [DOG, CAT]).run(iter(frames), chunk))
    assert [(m.frame_index, m.expression_index) for m in got] == [(t, k) for t in range(9) for k in range(2)]
    assert_near(got, wanted)


def test_run_of_no_frames(model):
    assert list(session(model, clip(4)).run([])) == []
    assert session(model, clip(4)).steps([]) == []


def test_interleaved_sessions_never_meet(model):
    clips = [clip(12, seed=1), clip(12, seed=2, size=(30, 20)), clip(12, seed=1)]
    expressions = [DOG, [CAT, DOG], CAR]
    alone = [list(glus.segment(model, f, e)) for f, e in zip(clips, expressions, strict=True)]
    sessions = [session(model, f, e) for f, e in zip(clips, expressions, strict=True)]
    got: list[list[FrameMask]] = [[], [], []]
    for frame in range(12):
        for number in range(3):
            got[number] += sessions[number].step(clips[number][frame])
    for one, other in zip(got, alone, strict=True):
        assert_same(one, other)


def test_generators_in_step_never_meet(model):
    clips = [clip(6, seed=1), clip(6, seed=2)]
    together = list(zip(*(glus.segment(model, frames, DOG, key_frame=3) for frames in clips), strict=True))
    for number, frames in enumerate(clips):
        assert_same([masks[number] for masks in together], list(glus.segment(model, frames, DOG, key_frame=3)))


def test_sessions_in_threads_never_meet(model):
    clips = [clip(8, seed=seed) for seed in range(3)]
    alone = [list(glus.segment(model, frames, DOG)) for frames in clips]
    got: dict[int, list[FrameMask]] = {}

    def work(number):
        got[number] = list(glus.segment(model, clips[number], DOG))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert_same(got[number], alone[number])


@pytest.mark.parametrize("key_frame", [None, 4])
def test_several_expressions_equal_each_alone(precise, key_frame):
    frames, expressions = clip(10), [DOG, "the car that turns right in the glass", CAT, DOG]
    together = list(glus.segment(precise, frames, expressions, key_frame=key_frame))
    assert [m.expression_index for m in together] == [0, 1, 2, 3] * 10
    for number, expression in enumerate(expressions):
        alone = list(glus.segment(precise, frames, expression, key_frame=key_frame))
        assert_near([m for m in together if m.expression_index == number], alone)


def test_expressions_that_miss_at_other_frames_equal_each_alone(precise):
    """Their banks then differ, so they go through the memory attention in groups."""
    frames = clip(12)
    alone = []
    for missing in ({0, 6}, {1, 11}):
        with answers(precise, missing):
            alone.append(list(glus.segment(precise, frames, DOG)))
    with answers(precise, {2 * 0, 2 * 6, 2 * 1 + 1, 2 * 11 + 1}):
        together = list(glus.segment(precise, frames, [DOG, DOG]))
    for number in range(2):
        got = [m for m in together if m.expression_index == number]
        assert [m.present for m in got] == [m.present for m in alone[number]]
        assert_near(got, alone[number])


def test_the_text_is_cleaned_and_named(model):
    frames = clip(3)
    assert_same(list(glus.segment(model, frames, "The Dog.")), list(glus.segment(model, frames, "the dog")))
    assert session(model, frames, ["The Dog.", CAT]).expressions == ("the dog", "the cat")


def test_a_rule_of_ones_own(model):
    frames = clip(12)
    slow = session(model, frames, memory=MemoryConfig(slots=2, stride=4))
    masks = [slow.step(frame)[0] for frame in frames]
    assert slow.memories <= 3
    usual = list(glus.segment(model, frames, DOG))
    assert_same(masks[:2], usual[:2])  # nothing to choose yet
    assert np.abs(masks[-1].logits - usual[-1].logits).max() > 1


# ---- what is computed and what is held ------------------------------------------------------------------------------


class Counter:
    """Images that went through the two image encoders."""

    def __init__(self, model, monkeypatch):
        self.clip, self.sam, self.prefixes = 0, 0, 0
        features, prefix = Segmenter.image_features, model.read_prefix

        def image_features(segmenter, pixels):
            self.sam += len(pixels)
            return features(segmenter, pixels)

        def read_prefix(*args):
            self.prefixes += 1
            return prefix(*args)

        def vision(_, inputs):
            self.clip += len(inputs[0])

        monkeypatch.setattr(Segmenter, "image_features", image_features)
        monkeypatch.setattr(model, "read_prefix", read_prefix)
        self._hook = model.vision.register_forward_pre_hook(vision)

    def remove(self):
        self._hook.remove()


@pytest.mark.parametrize("key_frame", [None, 0, 3, 8])
@pytest.mark.parametrize("expressions", [DOG, [DOG, CAT, CAR]])
def test_features_are_computed_once_a_frame(model, monkeypatch, expressions, key_frame):
    counter = Counter(model, monkeypatch)
    try:
        list(glus.segment(model, clip(9), expressions, key_frame=key_frame))
    finally:
        counter.remove()
    assert (counter.clip, counter.sam, counter.prefixes) == (4 + 9, 9, 1)  # 4 context frames


def held(state):
    """Memories, and bytes of everything."""
    return (
        sum(name.startswith("memory.") for name in state),
        sum(tensor.untyped_storage().nbytes() for tensor in state.values()),
    )


def test_what_is_held_does_not_grow(model):
    frames = clip(16)
    long = session(model, frames)
    at = {}
    for start in range(0, 504, 6):
        long.steps([frames[(start + i) % 16] for i in range(6)])
        at[long.steps_done] = (*held(long.state_dict()), long.memories)
    assert at[48] == at[54] == at[252] == at[498] == at[504]  # multiples of the stride
    assert max(memories for _, _, memories in at.values()) <= 8
    assert at[504][0] == at[504][2] > 0


def test_what_is_held_does_not_grow_frame_by_frame(model):
    long = session(model, clip(4))
    sizes = []
    for number in range(60):
        long.step(clip(4)[number % 4])
        sizes.append(held(long.state_dict()))
    assert sizes[30:33] == sizes[33:36] == sizes[57:60]  # the stride is 3
    assert max(sizes[40:])[1] <= max(sizes[:24])[1]


def test_nothing_is_held_without_memory(model):
    plain = session(model, clip(4), memory=False)
    for frame in clip(4):
        plain.step(frame)
    assert plain.memories == 0
    assert sorted(plain.state_dict()) == ["count", "tokens.0", "tokens.1", "tokens.2"]


def test_no_gradient_and_no_graph(model):
    running = session(model, clip(4))
    running.step(clip(4)[0])
    assert not any(value.requires_grad for value in running.state_dict().values())
    assert torch.is_grad_enabled()


def test_a_clip_does_not_spoil_the_model_for_training(model):
    """Position codes are kept between calls; made under inference they must not stop a later backward pass."""
    fresh = model.segmenter._codes
    model.segmenter._codes = {}
    try:
        list(glus.segment(model, clip(3), DOG))
        segmenter, grid = model.segmenter, model.config.segmenter.grid
        features = segmenter.image_features(torch.zeros(1, 3, 64, 64))
        prompt = torch.zeros(1, 64, requires_grad=True)
        remembered = torch.zeros(1, 2, model.config.segmenter.memory_size, grid, grid)
        conditioned = segmenter.condition(features.coarse, remembered)
        decoded = segmenter.decode(features, conditioned, prompt, single=True)
        (decoded.logits.sum() + segmenter.encode_memory(conditioned, decoded.logits).sum()).backward()
        assert prompt.grad is not None
        assert prompt.grad.abs().sum() > 0
    finally:
        model.segmenter._codes = fresh
        model.zero_grad(set_to_none=True)


def threads():
    return {thread.ident for thread in threading.enumerate()}


@pytest.mark.parametrize("after", [1, 4, 9])
@pytest.mark.parametrize("chunk", [1, 3])
def test_closing_early_leaves_no_thread(model, after, chunk):
    before = threads()
    masks = iter(Segmentation(model, clip(12), DOG, key_frame=4, chunk=chunk))
    for _ in range(after):
        next(masks)
    masks.close()
    assert threads() <= before


def test_an_end_and_an_error_leave_no_thread(model):
    before = threads()
    list(glus.segment(model, clip(5), DOG))
    broken = [*clip(3), np.zeros((2, 2), np.uint8)]
    with pytest.raises(VideoError):
        list(session(model, clip(4)).run(broken, 2))
    assert threads() <= before


# ---- key frame ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "order"), [(0, [0, 1, 2, 3, 4]), (2, [2, 3, 4, 1, 0]), (4, [4, 3, 2, 1, 0])])
def test_key_frame_order(model, key, order):
    frames = clip(5)
    masks = list(glus.segment(model, frames, [DOG, CAT], key_frame=key))
    assert [(m.frame_index, m.expression_index) for m in masks] == [(t, k) for t in order for k in range(2)]


# after 23 steps forwards the key frame itself is forgotten there; backwards it must still be remembered
@pytest.mark.parametrize(("length", "key"), [(9, 5), (26, 3)])
def test_a_key_frame_is_a_pass_forwards_and_one_backwards_from_it(model, length, key):
    frames = clip(length)
    masks = list(glus.segment(model, frames, DOG, key_frame=key))
    forwards = session(model, frames, first_frame=key)
    backwards = session(model, frames, first_frame=key, direction=-1)
    wanted = [forwards.step(frame)[0] for frame in frames[key:]]
    wanted += [backwards.step(frame)[0] for frame in frames[key::-1]][1:]  # the key frame itself once
    assert_same(masks, wanted)


def test_no_key_frame_is_key_frame_0(model):
    assert_same(list(glus.segment(model, clip(5), DOG, key_frame=0)), list(glus.segment(model, clip(5), DOG)))


def test_turning_needs_a_single_step(model):
    running = session(model, clip(4))
    with pytest.raises(SettingError, match="done 0"):
        running.turn()
    running.steps(clip(4)[:2])
    with pytest.raises(SettingError, match="done 2"):
        running.turn()


def test_fresh_starts_over(model):
    frames = clip(6)
    running = session(model, frames)
    first = [running.step(frame)[0] for frame in frames]
    again = running.fresh()
    assert (again.steps_done, again.memories, running.steps_done) == (0, 0, 6)
    assert_same([again.step(frame)[0] for frame in frames], first)


# ---- resuming -------------------------------------------------------------------------------------------------------


def through_a_file(state):
    """As it comes back from disk; also: it can be written at all."""
    return load_bytes(save_bytes({name: tensor.contiguous() for name, tensor in state.items()}))


@pytest.mark.parametrize(
    ("chunk", "key_frame", "expressions"),
    [(1, None, DOG), (1, 3, DOG), (1, 5, DOG), (3, None, [DOG, CAT]), (3, 2, DOG), (3, 1, [DOG, CAT]), (3, 5, DOG)],
)
def test_resuming_at_every_cut(model, chunk, key_frame, expressions):
    frames = clip(6)
    count = 1 if isinstance(expressions, str) else len(expressions)

    def start(state=None):
        return Segmentation(model, frames, expressions, key_frame=key_frame, chunk=chunk, state=state)

    whole = list(start())
    for cut in range(len(whole) + 1):
        interrupted = start()
        masks = iter(interrupted)
        head = [next(masks) for _ in range(cut)]
        assert_same(head, whole[:cut])
        state = through_a_file(interrupted.state_dict())
        masks.close()
        tail = list(start(state))
        # a chunk under way is done again, whole; nothing is left out
        assert cut <= cut + (again := len(tail) - (len(whole) - cut)) < cut + max(chunk * count, 2), cut
        assert again >= 0
        if cut % count == 0 and chunk == 1:
            assert again == 0
        assert_same(tail, whole[len(whole) - len(tail) :])


def test_a_state_is_a_copy(model):
    frames = clip(8)
    segmentation = Segmentation(model, frames, DOG)
    masks = iter(segmentation)
    head = [next(masks) for _ in range(4)]
    state = segmentation.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    rest = list(masks)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    assert_same(list(Segmentation(model, frames, DOG, state=state)), rest)
    assert len(head + rest) == 8


def test_resuming_twice(model):
    frames, wanted = clip(9), list(glus.segment(model, clip(9), DOG, key_frame=4))
    got, state = [], None
    while len(got) < 9:
        segmentation = Segmentation(model, frames, DOG, key_frame=4, state=state)
        masks = iter(segmentation)
        got += [next(masks), *([next(masks)] if len(got) < 8 else [])]
        state = segmentation.state_dict()
        masks.close()
    assert_same(got, wanted)


def test_a_state_of_a_finished_pass_gives_nothing_more(model):
    for key in (None, 2, 3):
        done = Segmentation(model, clip(4), DOG, key_frame=key)
        list(done)
        assert list(Segmentation(model, clip(4), DOG, key_frame=key, state=done.state_dict())) == []


def test_there_is_no_state_before_the_first_frame(model):
    segmentation = Segmentation(model, clip(4), DOG)
    assert segmentation.state_dict() == {}
    assert len(list(Segmentation(model, clip(4), DOG, state={}))) == 4


def test_a_sessions_state_goes_into_another_session(model):
    frames = clip(10)
    running = session(model, frames, [DOG, CAT])
    running.steps(frames[:5])
    resumed = session(model, frames, [DOG, CAT])
    resumed.load_state_dict(through_a_file(running.state_dict()))
    assert (resumed.next_frame, resumed.memories) == (running.next_frame, running.memories)
    for frame in frames[5:]:
        assert_same(resumed.step(frame), running.step(frame))


# ---- wrong arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [-1, 4, 400])
def test_a_key_frame_outside_the_clip(model, key):
    with pytest.raises(SettingError, match=f"key frame {key} is outside the clip, which has frames 0 to 3"):
        Segmentation(model, clip(4), DOG, key_frame=key)


@pytest.mark.parametrize("indices", [[0, 1, 2, 4], [-5, 0, 1, 2]])
def test_context_frames_outside_the_clip(model, indices):
    with pytest.raises(SettingError, match=r"context frame (4|-5) is outside the clip"):
        Segmentation(model, clip(4), DOG, context_frames=indices)


@pytest.mark.parametrize("indices", [[], [0], [0, 1, 2, 3, 3]])
def test_a_wrong_number_of_context_frames(model, indices):
    with pytest.raises(SettingError, match=rf"{len(indices)} context frames .* trained with 4"):
        list(glus.segment(model, clip(4), DOG, context_frames=indices))


@pytest.mark.parametrize(
    ("expressions", "says"),
    [("", "empty"), ([], "no prompt"), ([DOG, " "], "empty"), ([DOG, 3], "int"), ("a [SEG] b", "reserves")],
)
def test_expressions_that_cannot_be_asked(model, expressions, says):
    with pytest.raises(PromptError, match=says):
        session(model, clip(4), expressions)
    with pytest.raises(PromptError, match=says):  # before the video is looked for
        list(glus.segment(model, "/no/such/video.mp4", expressions))


@pytest.mark.parametrize(
    "frame",
    [
        None,
        "frame.png",
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_wrong_frames(model, frame):
    running = session(model, clip(4))
    with pytest.raises(VideoError, match="frame is"):
        running.step(frame)
    assert running.steps_done == 0
    with pytest.raises(VideoError):
        VideoSession(model, DOG, [*clip(3), frame])
    with pytest.raises(VideoError):
        list(glus.segment(model, [*clip(3), frame], DOG))
    # and it is not spoilt
    assert_same(running.step(clip(4)[0]), session(model, clip(4)).step(clip(4)[0]))


def test_a_bad_frame_among_several_changes_nothing(model):
    running = session(model, clip(4))
    with pytest.raises(VideoError):
        running.steps([clip(4)[0], np.zeros((2, 2), np.uint8)])
    assert (running.steps_done, running.memories) == (0, 0)


def test_a_list_of_differing_sizes_is_no_clip(model):
    with pytest.raises(VideoError, match="frame 1"):
        list(glus.segment(model, [clip(1)[0], clip(1, size=(8, 8))[0]], DOG))


# ---- odd clips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_clips(model, length):
    for key in [None, *range(length)]:
        masks = list(glus.segment(model, clip(length), DOG, key_frame=key))
        assert sorted(m.frame_index for m in masks) == list(range(length))
    resumed = Segmentation(model, clip(length), DOG, key_frame=length - 1)
    first = next(iter(resumed))
    assert first.frame_index == length - 1


def test_sizes_that_change_within_a_clip(precise):
    frames = [clip(1, seed=n, size=size)[0] for n, size in enumerate([(24, 32), (32, 24), (50, 50), (24, 32)])]
    one_by_one = session(precise, frames)
    wanted = [one_by_one.step(frame)[0] for frame in frames]
    assert [m.mask.shape for m in wanted] == [(24, 32), (32, 24), (50, 50), (24, 32)]
    assert_near([row[0] for row in session(precise, frames).steps(frames)], wanted)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_odd_sizes(model, size):
    frames = [np.full((*size, 3), 40 * n, np.uint8) for n in range(3)]
    masks = list(glus.segment(model, frames, DOG))
    assert [m.mask.shape for m in masks] == [size] * 3
    assert all(np.isfinite(m.logits).all() for m in masks)


def test_frames_are_read_whatever_their_memory_looks_like_and_never_written(model):
    frames = clip(4)
    kept = [frame.copy() for frame in frames]
    wanted = list(glus.segment(model, frames, DOG))
    assert all(np.array_equal(a, b) for a, b in zip(frames, kept, strict=True))
    wide = [np.repeat(frame, 2, axis=1) for frame in frames]
    variants = {
        "read-only": [frame.copy() for frame in frames],
        "strided": [frame[:, ::2] for frame in wide],
        "columns first": [np.asfortranarray(frame) for frame in frames],
        "reversed twice": [np.ascontiguousarray(frame[::-1])[::-1] for frame in frames],
        "one array": np.stack(frames),
    }
    for frame in variants["read-only"]:
        frame.setflags(write=False)
    for name, variant in variants.items():
        got = list(glus.segment(model, variant, DOG))
        assert all(same(a, b) for a, b in zip(got, wanted, strict=True)), name


def test_an_open_source_is_read_and_left_open(model):
    source = FrameArrays(clip(5))
    assert_same(list(glus.segment(model, source, DOG)), list(glus.segment(model, clip(5), DOG)))
    assert len(source[0]) == 24


def test_a_real_video(model, chair):
    masks = list(Segmentation(model, chair, DOG, key_frame=58, chunk=8))
    assert [m.frame_index for m in masks][:4] == [58, 59, 57, 56]
    assert sorted(m.frame_index for m in masks) == list(range(60))
    assert {m.mask.shape for m in masks} == {(480, 720)}


# ---- what a mask promises -------------------------------------------------------------------------------------------


def check_contract(mask, size, side):
    assert type(mask.frame_index) is type(mask.expression_index) is int
    assert mask.mask.dtype == np.bool_
    assert mask.mask.shape == size
    assert mask.logits.dtype == np.float32
    assert mask.logits.shape == (side, side)
    assert type(mask.score) is float
    assert type(mask.present) is bool
    assert 0.0 <= mask.score <= 1.0
    assert mask.present == bool(mask.mask.any())
    if mask.present:
        full = torch.nn.functional.interpolate(torch.from_numpy(mask.logits)[None, None], size, mode="bilinear")
        assert np.array_equal(full[0, 0].numpy() > 0, mask.mask)
    else:
        assert mask.score == 0.0


def test_masks_keep_their_promises(model):
    with answers(model, {2, 5}):
        masks = list(glus.segment(model, clip(8), DOG))
    for mask in masks:
        check_contract(mask, (24, 32), 16)
    assert [m.frame_index for m in masks if not m.present] == [2, 5]
    assert all((masks[n].logits == NO_OBJECT_LOGIT).all() for n in (2, 5))
    assert masks[0].score > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        masks[0].score = 2.0


def test_a_mask_without_a_pixel_is_not_present(model, monkeypatch):
    decode = Segmenter.decode

    def nothing(*args, **options):
        decoded = decode(*args, **options)
        return dataclasses.replace(decoded, logits=-decoded.logits.abs() - 1)

    monkeypatch.setattr(Segmenter, "decode", nothing)
    for mask in glus.segment(model, clip(4), DOG):
        check_contract(mask, (24, 32), 16)
        assert not mask.present
        assert (mask.logits > NO_OBJECT_LOGIT).all()  # what the decoder said, not what stands for no answer


def test_masks_do_not_share_their_memory(model):
    masks = list(Segmentation(model, clip(6), [DOG, CAT], chunk=3))
    kept = [m.mask.copy() for m in masks], [m.logits.copy() for m in masks]
    masks[0].mask[:] = ~masks[0].mask
    masks[0].logits[:] = 7
    for number in range(1, len(masks)):
        assert np.array_equal(masks[number].mask, kept[0][number])
        assert np.array_equal(masks[number].logits, kept[1][number])


def test_a_missed_first_frame_leaves_nothing_to_remember(model):
    frames = clip(5)
    with answers(model, {0, 1}):
        running = session(model, frames)
        first = running.step(frames[0])[0]
        assert (first.present, running.memories) == (False, 0)
        running.step(frames[1])
        assert running.memories == 0
        assert running.step(frames[2])[0].present
        assert running.memories == 1
