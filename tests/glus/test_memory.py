"""The memory rule against a table of answers, and its bound against brute force."""

from __future__ import annotations

import pytest
import torch

from glus.config import MemoryConfig
from glus.memory import MemoryBank, is_needed_after, memory_frames

RULES = [(slots, stride) for slots in (1, 2, 3, 7) for stride in (1, 2, 3, 5)]


@pytest.mark.parametrize(
    ("frame", "slots", "stride", "frames"),
    [
        (0, 7, 3, []),
        (1, 7, 3, [0]),
        (2, 7, 3, [0, 1]),
        (3, 7, 3, [0, 2]),
        (4, 7, 3, [0, 3]),
        (5, 7, 3, [0, 3, 4]),
        (8, 7, 3, [0, 3, 6, 7]),
        (19, 7, 3, [0, 3, 6, 9, 12, 15, 18]),
        (20, 7, 3, [3, 6, 9, 12, 15, 18, 19]),
        (21, 7, 3, [3, 6, 9, 12, 15, 18, 20]),
        (22, 7, 3, [3, 6, 9, 12, 15, 18, 21]),
        (23, 7, 3, [6, 9, 12, 15, 18, 21, 22]),
        (9, 7, 1, [2, 3, 4, 5, 6, 7, 8]),
        (3, 7, 1, [0, 1, 2]),
        (9, 1, 3, [8]),
        (9, 2, 3, [6, 8]),
        (-3, 7, 3, []),
    ],
)
def test_memory_frames(frame, slots, stride, frames):
    assert memory_frames(frame, slots=slots, stride=stride) == frames


@pytest.mark.parametrize(("slots", "stride"), RULES)
def test_memory_frames_follow_the_description(slots, stride):
    """f-1, and b, b-r, ..., b-(slots-2)r with b = floor((f-2)/r)*r; oldest first, none twice, none negative."""
    for frame in range(1, 80):
        newest = (frame - 2) // stride * stride
        wanted = {frame - 1} | {newest - k * stride for k in range(slots - 1)}
        assert memory_frames(frame, slots=slots, stride=stride) == sorted(f for f in wanted if f >= 0)


@pytest.mark.parametrize(("slots", "stride"), RULES)
def test_what_is_needed_after_is_what_any_later_step_asks_for(slots, stride):
    most = 90
    asked = [set(memory_frames(step, slots=slots, stride=stride)) for step in range(most)]
    for frame in range(40):
        later = set().union(*asked[frame + 1 :])  # stretches further than any window reaches back
        for stored in range(frame + 1):
            assert is_needed_after(stored, frame, slots=slots, stride=stride) == (stored in later), (stored, frame)


@pytest.mark.parametrize(("slots", "stride"), RULES)
def test_the_bank_is_bounded_and_lacks_nothing(slots, stride):
    bank = MemoryBank(MemoryConfig(slots=slots, stride=stride))
    for frame in range(200):
        assert bank.frames(frame) == memory_frames(frame, slots=slots, stride=stride)
        for remembered in bank.frames(frame):
            assert bank.get(remembered).item() == remembered
        bank.advance(frame, torch.tensor(float(frame)))
        assert len(bank) <= slots + 1


def test_a_frame_without_an_answer_is_missing_and_replaced_by_nothing():
    bank = MemoryBank(MemoryConfig())
    for frame in range(20):
        bank.advance(frame, None if frame in {6, 19} else torch.zeros(1))
    assert bank.frames(20) == [3, 9, 12, 15, 18]


def test_missed_frames_still_push_out_old_ones():
    bank = MemoryBank(MemoryConfig())
    bank.advance(0, torch.zeros(1))
    for frame in range(1, 40):
        bank.advance(frame, None)
    assert len(bank) == 0


def test_a_copy_goes_its_own_way():
    bank = MemoryBank(MemoryConfig())
    bank.advance(0, torch.zeros(1))
    twin = bank.copy()
    twin.advance(1, torch.ones(1))
    assert sorted(bank.entries()) == [0]
    assert sorted(twin.entries()) == [0, 1]
    bank.advance(1, None)
    bank.advance(2, None)
    assert twin.frames(2) == [0, 1]


def test_entries_and_restore_do_not_share_the_dictionary():
    bank, other = MemoryBank(MemoryConfig()), MemoryBank(MemoryConfig())
    bank.advance(0, torch.zeros(1))
    entries = bank.entries()
    other.restore(entries)
    entries.clear()
    assert len(bank) == len(other) == 1
