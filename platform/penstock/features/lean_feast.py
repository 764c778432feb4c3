"""Keeps `import feast` from importing torch.

Feast 0.67 imports torch at once, where it is installed, for one method that turns features into
tensors (`feast/torch_wrapper.py`): seconds of every command, and hundreds of megabytes of every
serving replica, which has no other use for torch.
"""

import importlib
import sys
from types import ModuleType

_WRAPPER = "feast.torch_wrapper"


def install() -> None:
    """Put a wrapper in place of Feast's that imports torch when a tensor is asked for.

    Does nothing where Feast was imported already.
    """
    if _WRAPPER in sys.modules:
        return
    wrapper = ModuleType(_WRAPPER, "Imports torch on first use; see penstock.features.lean_feast.")
    wrapper.__dict__["get_torch"] = get_torch
    sys.modules[_WRAPPER] = wrapper


def get_torch() -> ModuleType:
    """Import torch, as Feast's own function of this name gives it."""
    return importlib.import_module("torch")
