"""The registry is the directory conf/mixer, seen through Hydra, so that other packages' mixers are in it too.

Hydra is imported when it is first asked: `import mixers` stays light.
"""

import difflib
import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext

from mixers.base import Mixer


def names() -> list[str]:
    """Every mixer on Hydra's search path, sorted."""
    from hydra.core.global_hydra import GlobalHydra

    with _hydra():
        return sorted(GlobalHydra.instance().config_loader().get_group_options("mixer"))


def build(name: str, d_model: int, **facts_and_overrides: object) -> Mixer:
    """The mixer `name`, of width d_model. Facts of a task: causal (True), length (256), max_length (length), and
    layer, n_layers (0, 1) for those that depend on depth; all else overrides the yaml. Raises ValueError for unknown
    names and keys.
    """
    return factory(name, **facts_and_overrides)(d_model)


def factory(
    name: str,
    *,
    causal: bool = True,
    length: int = 256,
    max_length: int | None = None,
    layer: int = 0,
    n_layers: int = 1,
    **overrides: object,
) -> Callable[[int], Mixer]:
    """d_model -> Mixer, as `build` makes it."""
    from hydra.utils import get_class

    values = knobs(name, causal=causal, length=length, max_length=length if max_length is None else max_length)
    target = get_class(values.pop("_target_"))
    for key in overrides:
        if key not in values:
            raise ValueError(unknown(f"key of mixer '{name}'", key, values))
    place = {"layer": layer, "n_layers": n_layers}
    wanted = {key: value for key, value in place.items() if key in inspect.signature(target).parameters}
    return functools.partial(target, **values | overrides | wanted)


def knobs(name: str, **facts: object) -> dict[str, object]:
    """The yaml's values, what it asks of the task filled in, and its _target_."""
    from hydra import compose
    from omegaconf import OmegaConf

    if name not in names():
        raise ValueError(unknown("mixer", name, names()))
    with _hydra():
        config = compose(f"mixer/{name}").mixer
    config = OmegaConf.merge({"task": facts}, {"mixer": config})
    values = OmegaConf.to_container(config, resolve=True)["mixer"]
    values.pop("_partial_", None)
    return values


def unknown(kind: str, name: str, known) -> str:
    """One sentence about a name that is not known: the closest one, and all there are."""
    close = difflib.get_close_matches(name, known, 1)
    return f"unknown {kind} '{name}'{f': did you mean {close[0]}?' if close else ';'} There are: {', '.join(known)}"


def _hydra():
    """Hydra as it is, or, outside of a Hydra application, with this project's conf."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_module("conf", version_base="1.3")
