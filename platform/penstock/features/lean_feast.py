"""Makes `import feast` light: without torch, and without rewriting its own source as it goes.

Feast 0.67 imports torch at once, where it is installed, for one method that turns features into
tensors (`feast/torch_wrapper.py`): seconds of every command, and hundreds of megabytes of every
serving replica, which has no other use for torch. And it decorates its constructors with
typeguard, which parses and compiles the whole module again for each of them: more than half of
what is left of the import. What those checks find in a declaration, mypy and `apply` find too.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_FEAST = "feast"
_WRAPPER = "feast.torch_wrapper"


def install() -> None:
    """Prepare the process's first `import feast`; does nothing after it."""
    if _FEAST in sys.modules or any(isinstance(f, _FeastFinder) for f in sys.meta_path):
        return
    wrapper = ModuleType(_WRAPPER, "Imports torch on first use; see penstock.features.lean_feast.")
    wrapper.__dict__["get_torch"] = get_torch
    sys.modules[_WRAPPER] = wrapper
    sys.meta_path.insert(0, _FeastFinder())


def get_torch() -> ModuleType:
    """Import torch, as Feast's own function of this name gives it."""
    return importlib.import_module("torch")


class _FeastFinder(MetaPathFinder):
    """Finds Feast where it is, and has it executed by `_FeastLoader`; once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _FEAST:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _FeastLoader(spec.loader)
        return spec


class _FeastLoader(Loader):
    """Executes Feast with typeguard's decorator passing Feast's own functions by."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import typeguard

        original = typeguard.typechecked

        def typechecked(target: Any = None, **options: Any) -> Callable[..., Any]:
            if getattr(target, "__module__", "").startswith(f"{_FEAST}."):
                unchanged: Callable[..., Any] = target
                return unchanged
            checked: Callable[..., Any] = original(target, **options)
            return checked

        typeguard.typechecked = typechecked  # type: ignore[assignment]  # the same to its callers
        try:
            self._loader.exec_module(module)
        finally:
            typeguard.typechecked = original
