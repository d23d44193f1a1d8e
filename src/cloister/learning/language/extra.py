"""What is said to who wants a language model where torch, transformers or peft cannot be imported."""

from __future__ import annotations

from cloister.errors import InputError

__all__ = ["extra_error"]


def extra_error(error: ImportError) -> InputError:
    """Say what is missing, or, where nothing is, that it cannot be loaded: so it ends without memory."""
    if not isinstance(error, ModuleNotFoundError):
        return InputError(
            "torch and transformers are installed, and cannot be loaded",
            fix="Free memory, or install cloister[llm] again",
        )
    return InputError("language models need torch, transformers and peft", fix="pip install 'cloister[llm]'")
