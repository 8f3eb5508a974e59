"""What libraries raise, in plain words. Knows their names and messages; imports none of them, and not runs."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from glus.errors import DeviceMemoryError, GlusError

INSTALL = "pip install 'glus-label-studio[model]'"
_MODEL_MODULES = {
    "accelerate",
    "av",
    "cv2",
    "huggingface_hub",
    "PIL",
    "pycocotools",
    "safetensors",
    "sentencepiece",
    "tokenizers",
    "torch",
    "transformers",
    "yaml",
}


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what libraries raise, where people can do something about it, into a GlusError that says so."""
    try:
        yield
    except GlusError:
        raise
    except Exception as error:
        plain = explain(error)
        if plain is None:
            raise
        raise plain from error


def explain(error: BaseException) -> GlusError | None:
    """The error in plain words; None when there is nothing to say about it."""
    text = " ".join(str(each) for each in _chain(error))
    if _out_of_memory(error):
        return DeviceMemoryError(
            f"out of memory ({_first_line(error)}). Try fewer prompts at a time, "
            "--dtype bfloat16, or another --device (cpu has the machine's own memory)"
        )
    if isinstance(error, (ImportError, RuntimeError, AttributeError)) and _torchvision_is_to_blame(text):
        return GlusError(
            "the installed torchvision does not fit the installed torch, so transformers cannot be imported "
            f"({_first_line(error)}). Nothing here needs it: pip uninstall torchvision"
        )
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _MODEL_MODULES:
        return GlusError(f"{error.name} is not installed, and segmenting needs it: {INSTALL}")
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
        return GlusError(f"{error.strerror}: {error.filename or 'the output folder'}")
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__ or each.__context__


def _out_of_memory(error: BaseException) -> bool:
    # By name, for torch need not be imported here; its CPU allocator raises a plain RuntimeError.
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator: can't allocate memory" in str(error)
        or "not enough memory: you tried to allocate" in str(error)
        or "CUDA error: out of memory" in str(error)
    )


def _torchvision_is_to_blame(text: str) -> bool:
    # transformers hides the cause behind "Could not import module ...".
    if "torchvision" not in text and "Could not import module" not in text:
        return False
    return importlib.util.find_spec("torchvision") is not None
