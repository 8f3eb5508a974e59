"""Frames by index, however they are reached. Clips are encoded here; bars in a frame give its number."""

from __future__ import annotations

import gc
import threading
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from glus.errors import NoVideoStream, SettingError, VideoError, VideoNotFound
from glus.video import (
    FrameArrays,
    FrameSource,
    ImageFolder,
    VideoFile,
    VideoWarning,
    VideoWriter,
    draw_overlay,
    open_video,
    write_overlay,
)

BITS = 8
OPEN_GOP = "open-gop=1:bframes=3:keyint=12:min-keyint=12:b-adapt=0:scenecut=0:log-level=none"
CHAIR = Path(__file__).parents[1] / "data" / "pumavos-chair" / "chair.mp4"


def painted(number, width=66, height=48):
    """A frame whose number can be read from 8 bars, the lowest bit on the left."""
    frame = np.full((height, width, 3), 40, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            frame[8:40, 1 + bit * 8 : 9 + bit * 8] = 220
    return frame


def number_in(frame):
    return sum(1 << bit for bit in range(BITS) if frame[16:32, 3 + bit * 8 : 7 + bit * 8].mean() > 128)


def numbers(frames):
    return [number_in(frame) for frame in frames]


def encode(path, codec="libx264", count=60, rate=30, pix_fmt="yuv420p", pts=None, rotation=None, form=None, **options):
    """Encode painted frames; `pts` are milliseconds."""
    options.setdefault("threads", "1")
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 66, 48, pix_fmt
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source, target, keep=lambda at, packet: True, shift=0, **options):
    """Copy packets: those that `keep`, each `shift` ticks later."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for at, packet in enumerate(read.demux(read.streams.video[0])):
            if packet.size and keep(at, packet):
                packet.stream = stream
                packet.pts += shift
                packet.dts = None if packet.dts is None else packet.dts + shift
                write.mux(packet)
    return target


def played(path):
    """What a decoder yields for the whole file, in its order: the definition of the index."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        return frames, stream.time_base


def ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name == "glus-video-ahead"]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert not ahead_threads()


VFR = np.cumsum([0, *([20, 33, 100, 41, 7] * 12)])[:60].tolist()
CLIPS = {
    "h264 b-frames mp4": lambda d: encode(d / "a.mp4", bf="3", g="12"),
    "h264 open gop mp4": lambda d: encode(d / "a.mp4", **{"x264-params": OPEN_GOP}),
    "h264 open gop mkv": lambda d: encode(d / "a.mkv", **{"x264-params": OPEN_GOP}),
    "h264 gradual refresh mkv": lambda d: encode(d / "a.mkv", **{"x264-params": "intra-refresh=1:keyint=12"}),
    "h264 two-frame gops mp4": lambda d: encode(d / "a.mp4", bf="3", g="2"),
    "h264 raw": lambda d: encode(d / "a.264", form="h264", bf="3", g="12"),
    "h264 transport stream": lambda d: encode(d / "a.ts", bf="3", g="12"),
    "h264 variable rate mp4": lambda d: encode(d / "a.mp4", pts=VFR, bf="3", g="12"),
    "h264 variable rate mkv": lambda d: encode(d / "a.mkv", pts=VFR, bf="3", g="12"),
    "h265 open gop mp4": lambda d: encode(
        d / "a.mp4",
        "libx265",
        **{"x265-params": "log-level=none:keyint=12:open-gop=1:pools=none:frame-threads=1"},
    ),
    "vp9 hidden frames webm": lambda d: encode(
        d / "a.webm", "libvpx-vp9", **{"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}
    ),
    "vp8 hidden frames webm": lambda d: encode(
        d / "a.webm", "libvpx", **{"g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}
    ),
    "mpeg4 avi": lambda d: encode(d / "a.avi", "mpeg4", g="12"),
    "mpeg4 b-frames avi": lambda d: encode(d / "a.avi", "mpeg4", bf="2", g="12"),
    "gif": lambda d: encode(d / "a.gif", "gif", pix_fmt="rgb8"),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_the_index_is_the_place_in_a_full_sequential_decode(kind, tmp_path):
    path = CLIPS[kind](tmp_path)
    reference, tick = played(path)
    with VideoFile(path) as video:
        assert len(video) == len(reference) == 60
        assert isinstance(video, FrameSource)
        if reference[0][0] is not None:
            np.testing.assert_allclose(video.times, [float(pts * tick) for pts, _ in reference], atol=1e-12)
        forward = list(video.frames())
        assert numbers(forward) == list(range(60))
        for frame, (_, expected) in zip(forward, reference, strict=True):
            np.testing.assert_array_equal(frame, expected)
        backward = list(video.frames(-1, None, -1))
        for frame, expected in zip(backward, reversed(forward), strict=True):
            np.testing.assert_array_equal(frame, expected)
        order = np.random.default_rng(0).permutation(60).tolist()
        for index in [*order[:25], 5, 5, 6, 4, 59, 0]:
            np.testing.assert_array_equal(video[index], forward[index], err_msg=f"frame {index}")


def test_jumps_really_jump(tmp_path, monkeypatch):
    """Decoding starts at a key frame near by, not at the beginning."""
    path = encode(tmp_path / "a.mp4", count=120, bf="3", g="12")
    with VideoFile(path) as video:
        pulled = []
        pull = video._decoder._pull
        monkeypatch.setattr(video._decoder, "_pull", lambda: pulled.append(1) or pull())
        assert number_in(video[110]) == 110
        assert len(pulled) <= 12 + 4  # one group, and the frames before it that come out of an open one


@pytest.mark.parametrize(
    ("start", "stop", "step"), [(5, 9, 1), (0, None, 1), (-3, None, 1), (40, 3, -1), (59, None, -1)]
)
def test_spans_are_slices(start, stop, step, tmp_path):
    path = encode(tmp_path / "a.mp4", bf="2", g="15")
    with VideoFile(path) as video:
        assert numbers(video.frames(start, stop, step)) == list(range(60))[start:stop:step]
        assert list(video.frames(60)) == []
        with pytest.raises(SettingError, match="wanted 1"):
            video.frames(0, None, 2)
        assert number_in(video[-1]) == 59
        with pytest.raises(IndexError, match="has 60 frames"):
            video[60]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_keeps_its_times(suffix, tmp_path):
    with VideoFile(encode(tmp_path / f"a.{suffix}", pts=[t + 500 for t in VFR], bf="3")) as video:
        np.testing.assert_allclose(video.times, np.array(VFR) / 1000 + 0.5, atol=0.0011)
        assert video.variable_rate
        assert float(video.fps) == pytest.approx(59_000 / VFR[-1], rel=1e-3)
    with VideoFile(encode(tmp_path / f"b.{suffix}", rate=Fraction(30000, 1001))) as video:
        assert not video.variable_rate
        assert video.fps == Fraction(30000, 1001)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(degrees, tmp_path):
    with VideoFile(encode(tmp_path / "a.mp4", rotation=degrees)) as video:
        assert (video.width, video.height) == ((66, 48) if degrees == 180 else (48, 66))
        for frame in (video[7], *video.frames(7, 8)):
            assert frame.shape == (video.height, video.width, 3)
            assert number_in(np.rot90(frame, -degrees // 90)) == 7


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("ffv1", f) for f in ("yuv444p10le", "bgra", "gray", "gray16le", "yuv422p", "yuva420p")],
)
def test_any_pixel_format_comes_out_as_8_bit_rgb(codec, pix_fmt, tmp_path):
    with VideoFile(encode(tmp_path / "a.mkv", codec, count=20, pix_fmt=pix_fmt)) as video:
        frames = list(video.frames())
        assert numbers(frames) == list(range(20))
        assert all(frame.dtype == np.uint8 and frame.shape == (48, 66, 3) for frame in frames)
        assert np.abs(frames[13].astype(int) - painted(13)).mean() < 4


def test_transparent_frames_lie_over_black(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 66, 48, "bgra"
        picture = np.dstack([painted(255), np.full((48, 66), 128, np.uint8)])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba")))
        container.mux(stream.encode())
    with VideoFile(tmp_path / "a.mkv") as video:
        np.testing.assert_array_equal(video[0], (painted(255) * (128 / 255) + 0.5).astype(np.uint8))


def test_frames_before_the_first_key_do_not_shift_indices(tmp_path):
    whole = encode(tmp_path / "a.mkv", **{"x264-params": OPEN_GOP})
    keys = []
    with av.open(str(whole)) as container:
        keys = [at for at, packet in enumerate(container.demux(video=0)) if packet.is_keyframe]
    cut = remux(whole, tmp_path / "cut.mkv", keep=lambda at, _: at >= keys[1] - 3)
    reference, _ = played(cut)
    with VideoFile(cut) as video:
        assert len(video) == len(reference) < 60
        assert numbers(video.frames()) == numbers(frame for _, frame in reference)
        assert [number_in(video[i]) for i in (30, 3, 0, 20)] == [number_in(reference[i][1]) for i in (30, 3, 0, 20)]


def test_an_edit_list_and_negative_times_do_not_shift_indices(tmp_path):
    whole = encode(tmp_path / "a.mp4", bf="3", g="12")
    cut = remux(whole, tmp_path / "cut.mp4", shift=-5 * 512)  # 5 frames lie before time 0: hidden by an edit list
    reference, tick = played(cut)
    with VideoFile(cut) as video:
        assert len(video) == len(reference) < 60
        np.testing.assert_allclose(video.times, [float(pts * tick) for pts, _ in reference], atol=1e-12)
        expected = numbers(frame for _, frame in reference)
        assert numbers(video.frames()) == expected
        assert numbers(video.frames(-1, None, -1)) == expected[::-1]
        assert [number_in(video[i]) for i in (40, 1, 0, 20)] == [expected[i] for i in (40, 1, 0, 20)]
    early = remux(whole, tmp_path / "early.mkv", shift=-5 * 512, avoid_negative_ts="disabled")
    reference, _ = played(early)
    with VideoFile(early) as video:
        assert numbers(video.frames()) == numbers(frame for _, frame in reference)


def truncated(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("suffix", ["mp4", "webm", "avi"])
def test_a_cut_file_yields_what_can_be_read_and_says_so_once(suffix, tmp_path):
    if suffix == "mp4":  # with the table of contents in front, or nothing could be read
        path = remux(encode(tmp_path / "a.mp4", g="12"), tmp_path / "b.mp4", movflags="+faststart")
    else:
        path = encode(tmp_path / f"b.{suffix}", {"webm": "libvpx-vp9", "avi": "mpeg4"}[suffix], g="12")
    truncated(path, 0.75)
    with warnings.catch_warnings(record=True, action="always") as told, open_video(path) as video:
        frames = list(video.frames())
        again = list(video.frames(-1, None, -1))
        assert 10 < len(frames) == len(again) == len(video) == len(video.times) < 60
        whole = numbers(frames)[:-1]  # the last one may be cut in its middle
        assert whole == sorted(set(whole))
        np.testing.assert_array_equal(video[len(video) // 2], frames[len(video) // 2])
    assert [warning.category for warning in told] == [VideoWarning]
    assert f"{len(frames)} of 60 frames" in str(told[0].message)


@pytest.mark.parametrize("backward", [False, True])
def test_damage_that_only_decoding_can_find(backward, tmp_path):
    path = remux(encode(tmp_path / "a.mp4", g="12"), tmp_path / "b.mp4", movflags="+faststart")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.8)] + bytes(len(data) - int(len(data) * 0.8)))
    with VideoFile(path) as video:
        assert len(video) == 60
        with pytest.warns(VideoWarning, match="of 60 frames") as told:
            frames = list(video.frames(-1, None, -1) if backward else video.frames())
        assert 10 < len(frames) == len(video) < 60
        shown = numbers(frames)
        assert shown == sorted(shown, reverse=backward)  # a half-read frame may show the one before it
        assert [number_in(video[i]) for i in range(len(video))] == (shown[::-1] if backward else shown)
    assert len(told) == 1


def test_damage_met_by_one_reader_is_known_to_the_others(tmp_path):
    path = remux(encode(tmp_path / "a.mp4", count=120, g="12"), tmp_path / "b.mp4", movflags="+faststart")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for packet in packets[49:53]:  # four pictures in the middle of a group
            data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    with warnings.catch_warnings(record=True, action="always") as told, VideoFile(path) as video:
        early, back, late = video.frames(), video.frames(-1, None, -1), video.frames()
        first = next(early)
        np.testing.assert_array_equal(video[0], first)
        backward = list(back)
        assert 100 < len(backward) == len(video) < 120
        forward = [first, *early]
        for frames in (backward[::-1], list(late), [video[i] for i in range(len(video))]):
            assert numbers(frames) == numbers(forward)
        order = np.random.default_rng(0).permutation(len(video)).tolist()
        assert [number_in(video[i]) for i in order] == [number_in(forward[i]) for i in order]
    assert [warning.category for warning in told] == [VideoWarning]


def test_files_that_are_no_video_say_what_to_try(tmp_path):
    with pytest.raises(VideoNotFound, match="no file"):
        open_video(tmp_path / "none.mp4")
    with pytest.raises(VideoNotFound, match="is an address"):
        open_video("https://example.org/a.mp4")
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    (tmp_path / "text.txt").write_text("no video\n" * 50)
    for name in ("text.mp4", "text.txt"):
        with pytest.raises(NoVideoStream, match="is text"):
            open_video(str(tmp_path / name))
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="empty"):
        open_video(tmp_path / "empty.mp4")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(VideoError, match="re-encode it: ffmpeg"):
        open_video(tmp_path / "noise.mp4")
    with pytest.raises(VideoError, match=r"complete mp4.*upload it again"):  # the table of contents was at the end
        open_video(truncated(encode(tmp_path / "cut.mp4"), 0.7))
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(NoVideoStream, match="holds audio"):
        open_video(tmp_path / "sound.m4a")
    with pytest.raises(VideoError, match="from a int"):
        open_video(7)


def test_an_iterator_closed_early_or_forgotten_leaves_no_thread(tmp_path):
    with VideoFile(encode(tmp_path / "a.mp4", count=120, g="12")) as video:
        for step in (1, -1):
            frames = video.frames(0 if step == 1 else -1, None, step)
            assert not ahead_threads()
            next(frames)
            assert len(ahead_threads()) == 1
            frames.close()
            assert not ahead_threads()
        frames = video.frames()
        next(frames)
        del frames
        gc.collect()
        assert not ahead_threads()
        for frame in video.frames():
            if number_in(frame) == 3:
                break
        del frame


def test_decoding_ahead_is_bounded():
    taken = []

    class Arrays(list):
        def __getitem__(self, index):
            taken.append(index)
            return super().__getitem__(index)

    frames = FrameArrays(Arrays([painted(i) for i in range(60)])).frames()
    next(frames)
    threading.Event().wait(0.2)
    assert len(set(taken)) <= 1 + 8 + 2  # taken, waiting, and in the hands of the two sides
    frames.close()


def test_two_iterators_and_random_access_at_once(tmp_path):
    with VideoFile(encode(tmp_path / "a.mp4", bf="3", g="12")) as video:
        pairs = zip(video.frames(), video.frames(-1, None, -1), strict=True)
        for index, (one, other) in enumerate(pairs):
            assert (number_in(one), number_in(other)) == (index, 59 - index)
            assert number_in(video[(index * 17) % 60]) == (index * 17) % 60
    with pytest.raises(VideoError, match="closed"):
        video[0]


def test_errors_of_the_thread_reach_the_reader_with_their_traceback():
    arrays = [painted(0), painted(1), np.zeros((4, 4), np.float32)]
    frames = FrameArrays(arrays).frames()
    assert numbers([next(frames), next(frames)]) == [0, 1]
    with pytest.raises(
        VideoError, match=r"frame 2 has shape \(4, 4\) and dtype float32; wanted \(48, 66, 3\)"
    ) as caught:
        next(frames)
    assert "_read" in [entry.name for entry in caught.traceback]


def test_arrays():
    source = open_video([painted(i) for i in range(5)], fps=29.97)
    assert (len(source), source.width, source.height, source.variable_rate) == (5, 66, 48, False)
    assert source.fps == Fraction(30000, 1001) or float(source.fps) == pytest.approx(29.97)
    assert open_video(source) is source
    assert numbers(source.frames(3, 0, -1)) == [3, 2, 1]
    assert number_in(source[-1]) == 4
    with pytest.raises(IndexError):
        source[5]
    stacked = open_video(np.stack([painted(i) for i in range(5)]))
    assert stacked.fps == 30
    np.testing.assert_allclose(stacked.times, np.arange(5) / 30)
    with pytest.raises(NoVideoStream):
        open_video([])
    with pytest.raises(VideoError, match=r"wanted \(N, H, W, 3\)"):
        open_video(painted(0))
    with pytest.raises(VideoError, match="frame 0 has shape"):
        open_video([np.zeros((3, 4), np.uint8)])
    with pytest.raises(SettingError):
        open_video([painted(0)], fps=0)


def test_a_folder_in_natural_order(tmp_path):
    for number in (1, 2, 10, 11):
        Image.fromarray(painted(number)).save(tmp_path / f"frame{number}.png")
    (tmp_path / ".frame0.png").write_bytes(b"hidden")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "frame3.png").mkdir()
    with open_video(tmp_path) as source:
        assert isinstance(source, ImageFolder)
        assert numbers(source.frames()) == [1, 2, 10, 11]
        assert numbers(source.frames(-1, None, -1)) == [11, 10, 2, 1]
        assert number_in(source[2]) == 10
    Image.fromarray(painted(3)[:40]).save(tmp_path / "frame12.png")
    (tmp_path / "frame13.jpg").write_bytes(b"broken")
    source = ImageFolder(tmp_path)
    assert len(source) == 6
    with pytest.raises(VideoError, match=r"frame12\.png is 66x40"):
        source[4]
    with pytest.raises(VideoError, match=r"frame13\.jpg"):
        source[5]
    (tmp_path / "none").mkdir()
    with pytest.raises(NoVideoStream, match="no pictures"):
        open_video(tmp_path / "none")


def test_folder_pictures_of_every_kind(tmp_path):
    whole = Image.fromarray(painted(37))
    grey16 = Image.fromarray(painted(37)[..., 0].astype(np.uint16) * 257)
    seen = whole.copy()
    seen.putalpha(128)
    turned = Image.Exif()
    turned[0x0112] = 6  # stored a quarter turn counterclockwise
    for name, image, options in (
        ("a.png", whole, {}),
        ("b.jpg", whole.transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
        ("c.png", whole.convert("L"), {}),
        ("d.png", whole.quantize(8), {}),
        ("e.png", grey16, {}),
        ("f.tiff", grey16, {}),
        ("g.webp", whole, {"lossless": True}),
        ("h.bmp", whole, {}),
        ("i.jpeg", whole.convert("CMYK"), {}),
        ("j.png", seen, {}),
    ):
        image.save(tmp_path / name, **options)
    source = ImageFolder(tmp_path)
    frames = list(source.frames())
    assert len(frames) == 10
    for path, frame in zip(source.paths, frames, strict=True):
        wanted = painted(37) / (2 if path.name == "j.png" else 1)
        assert frame.dtype == np.uint8
        assert np.abs(frame.astype(float) - wanted).mean() < 4, path.name


@pytest.mark.parametrize(("width", "height"), [(66, 48), (65, 47), (1, 1)])
def test_the_writer_keeps_rate_and_handles_odd_sizes(width, height, tmp_path):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, width, height, Fraction(30000, 1001)) as writer:
        assert writer.encoded_size == (width + width % 2, height + height % 2)
        for number in range(45):
            writer.write(painted(number)[:height, :width])
        assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with VideoFile(path) as video:
        assert video.fps == Fraction(30000, 1001)
        assert not video.variable_rate
        np.testing.assert_allclose(video.times, np.arange(45) * 1001 / 30000, atol=1e-9)
        assert (video.width, video.height) == writer.encoded_size
        frames = list(video.frames())
        if width > 60:
            assert numbers(frames) == list(range(45))


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(50), Fraction(1), Fraction(2999, 100)])
def test_the_writer_keeps_odd_rates(rate, tmp_path):
    with VideoWriter(tmp_path / "out.mp4", 66, 48, rate) as writer:
        for number in range(20):
            writer.write(painted(number))
    with VideoFile(tmp_path / "out.mp4") as video:
        assert (video.fps, len(video), video.variable_rate) == (rate, 20, False)


def test_the_writer_keeps_colours(tmp_path):
    colour = np.broadcast_to(np.array([200, 30, 90], np.uint8), (48, 66, 3))
    with VideoWriter(tmp_path / "out.mp4", 66, 48, Fraction(30)) as writer:
        for _ in range(5):
            writer.write(colour)
    with VideoFile(tmp_path / "out.mp4") as video:
        assert np.abs(video[3].astype(int) - colour).max() <= 4


def test_the_writer_keeps_given_times(tmp_path):
    times = np.array(VFR) / 1000 + 0.5
    with VideoWriter(tmp_path / "out.mp4", 66, 48, Fraction(30)) as writer:
        for number, time in enumerate(times):
            writer.write(painted(number), float(time))
        with pytest.raises(SettingError, match="that increase"):
            writer.write(painted(60), 0.1)
    with VideoFile(tmp_path / "out.mp4") as video:
        np.testing.assert_allclose(video.times, times, atol=2e-5)
        assert numbers(video.frames()) == list(range(60))


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "out.mp4"

    def write(frames):
        with VideoWriter(path, 66, 48, Fraction(30)) as writer:
            for frame in frames:
                writer.write(frame)

    with pytest.raises(SettingError, match=r"wanted \(48, 66, 3\)"):
        write([painted(0), painted(0)[:20]])
    with pytest.raises(VideoError, match="no frame"):
        write([])
    with pytest.raises(ZeroDivisionError):
        write(painted(1 // (1 - at)) for at in range(2))
    with pytest.raises(VideoError, match="cannot write"):
        VideoWriter(tmp_path / "none" / "out.mp4", 66, 48, Fraction(30))
    with pytest.raises(SettingError):
        VideoWriter(path, 0, 48, Fraction(30))
    assert list(tmp_path.iterdir()) == []
    with VideoWriter(path, 66, 48, Fraction(30)) as writer:
        writer.write(painted(0))
    with pytest.raises(VideoError, match="closed"):
        writer.write(painted(0))


def test_overlay_tints_outlines_and_leaves_the_input():
    frame = np.full((240, 320, 3), 100, np.uint8)
    first, second = np.zeros((2, 240, 320), bool)
    first[100:150, 200:260] = True
    second[180:240, 0:40] = True
    before = frame.copy()
    drawn = draw_overlay(frame, [first, second], alpha=0.5)
    np.testing.assert_array_equal(frame, before)
    np.testing.assert_array_equal(drawn[~(first | second)], frame[~(first | second)])
    np.testing.assert_array_equal(drawn[125, 230], [165, 130, 50])  # half orange
    np.testing.assert_array_equal(drawn[100, 230], [230, 159, 0])  # the outline is the colour itself
    np.testing.assert_array_equal(drawn[210, 20], [93, 140, 167])
    np.testing.assert_array_equal(drawn[239, 20], [86, 180, 233])
    only = draw_overlay(frame, [np.zeros_like(first), second])
    np.testing.assert_array_equal(only[210, 20], drawn[210, 20])  # an object keeps its colour
    np.testing.assert_array_equal(draw_overlay(frame, []), frame)
    with pytest.raises(SettingError, match=r"wanted \(240, 320\) bool"):
        draw_overlay(frame, [first[:100]])
    with pytest.raises(SettingError, match="alpha"):
        draw_overlay(frame, [first], alpha=2)
    with pytest.raises(SettingError, match="1 labels for 2"):
        draw_overlay(frame, [first, second], ["one"])


@pytest.mark.parametrize("size", [(1, 1), (12, 9), (64, 48), (320, 240), (1920, 1080)])
def test_the_legend_fits_any_size(size, tmp_path):
    width, height = size
    frame = np.full((height, width, 3), 100, np.uint8)
    empty = np.zeros((height, width), bool)
    labels = ["the cat", "a very long sentence about the dog that turns left " * 5, "é ü 猫"] + ["more"] * 20
    drawn = draw_overlay(frame, [empty] * len(labels), labels)
    assert drawn.shape == frame.shape
    if width >= 64:
        assert (drawn != frame).any()
        assert drawn.max() > 200  # bright text on a dark ground
        few = draw_overlay(frame, [empty], ["cat"])
        assert (few != frame).any(axis=2).mean() < 0.5


def test_write_overlay_carries_times_over(tmp_path):
    path = encode(tmp_path / "a.mkv", pts=VFR, bf="2")
    mask = np.zeros((48, 66), bool)
    mask[42:] = True
    done = []
    with VideoFile(path) as video:
        write_overlay(tmp_path / "out.mp4", video, lambda index: [mask], None, progress=done.append)
        with VideoFile(tmp_path / "out.mp4") as out:
            np.testing.assert_allclose(out.times, video.times, atol=2e-5)
            assert numbers(out.frames()) == list(range(60))
            assert out[0][45, 30, 0] > out[0][45, 30, 2] + 60  # orange
    assert done == list(range(1, 61))
    source = FrameArrays([painted(i) for i in range(10)], fps=Fraction(30000, 1001))
    write_overlay(tmp_path / "even.mp4", source, lambda index: [mask], ["sea"])
    with VideoFile(tmp_path / "even.mp4") as out:
        assert out.fps == Fraction(30000, 1001)


@pytest.mark.skipif(not CHAIR.exists(), reason="the recorded clip is not there")
def test_a_recorded_clip():
    with VideoFile(CHAIR) as video:
        assert (len(video), video.width, video.height) == (60, 720, 480)
        forward = list(video.frames(0, 20))
        for index in (13, 2, 19):
            np.testing.assert_array_equal(video[index], forward[index])
