"""The registry is the directory conf/mixer, seen through Hydra, so that other packages' mixers are in it too.

Hydra is imported when it is first asked: `import mixers` stays light.
"""

import difflib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mixers.base import Mixer


def names() -> list[str]:
    """Every mixer on Hydra's search path, sorted."""
    from hydra.core.global_hydra import GlobalHydra

    with _hydra():
        loader = GlobalHydra.instance().config_loader()
        return sorted(loader.get_group_options("mixer", overrides=_search_path()))


def build(name: str, d_model: int, **facts_and_overrides: Any) -> Mixer:
    """The mixer `name`, of width d_model. Facts of a task: causal (True), length (256), max_length (length), and
    layer, n_layers (0, 1) for those that depend on depth; all else overrides the yaml. A mixer that has one direction
    only comes in that one. Raises ValueError for unknown names and keys.
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
    **overrides: Any,
) -> Callable[[int], Mixer]:
    """d_model -> Mixer, as `build` makes it."""
    from hydra.utils import instantiate

    values = knobs(name, causal=causal, length=length, max_length=max_length)
    target = target_of(values)
    for key in overrides:
        if key not in values or key.startswith("_"):
            raise ValueError(unknown(f"key of mixer '{name}'", key, [k for k in values if not k.startswith("_")]))
    place = {"layer": layer, "n_layers": n_layers}
    wanted = {key: value for key, value in place.items() if key in inspect.signature(target).parameters}
    values = {k: v for k, v in values.items() if k != "_target_"} | overrides | wanted
    return functools.partial(
        target, **{k: instantiate(v) if isinstance(v, dict) and "_target_" in v else v for k, v in values.items()}
    )


def knobs(name: str, *, causal: bool = True, length: int = 256, max_length: int | None = None) -> dict[str, Any]:
    """The yaml's values, what it asks of the task filled in, and its _target_. Raises ValueError for unknown names."""
    from omegaconf import OmegaConf

    known = _composed()
    if name not in known:
        raise ValueError(unknown("mixer", name, known))
    facts = {"causal": causal, "length": length, "max_length": length if max_length is None else max_length}
    resolved: Any = OmegaConf.to_container(OmegaConf.create({"task": facts, "mixer": known[name]}), resolve=True)
    return {key: value for key, value in resolved["mixer"].items() if key != "_partial_"}


def about(name: str) -> str:
    """The comment that a mixer's yaml begins with: what it changes of the mixer that it builds on, and whose idea that
    was.
    """
    from importlib.resources import files

    from hydra.core.global_hydra import GlobalHydra

    with _hydra():
        for source in GlobalHydra.instance().config_loader().get_sources():
            if source.is_config(f"mixer/{name}"):
                root = Path(source.path) if source.scheme() == "file" else files(source.path.replace("/", "."))
                lines = itertools.takewhile(
                    lambda line: line.startswith("#"), root.joinpath("mixer", f"{name}.yaml").read_text().splitlines()
                )
                return " ".join(line.lstrip("# ") for line in lines)
    return ""


def directions(name: str) -> list[bool]:
    """The values of `causal` that the mixer comes in, True first."""
    ways = set()
    for causal in (True, False):
        values = knobs(name, causal=causal)
        ways.add(values.get("causal", target_of(values).causal))
    return sorted(ways, reverse=True)


def target_of(values: dict[str, Any]) -> type[Mixer]:
    """The class that a yaml's values name."""
    from hydra.utils import get_class

    target: Any = get_class(values["_target_"])
    return target


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One sentence about a name that is not known: the closest one, and all there are."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"unknown {kind} '{name}'{f', did you mean {close[0]}?' if close else ';'} there are: {', '.join(known)}"


def _hydra():
    """Hydra as it is, or, outside of a Hydra application, with this project's conf."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_module("conf", version_base="1.3")


def _composed() -> dict[str, Any]:
    """Every mixer's yaml, composed but not resolved."""
    from hydra.core.global_hydra import GlobalHydra

    with _hydra():
        sources = GlobalHydra.instance().config_loader().get_sources()
        return _compose(tuple(source.full_path() for source in sources), tuple(_search_path()))


@functools.lru_cache(maxsize=1)
def _compose(sources: tuple[str, ...], search_path: tuple[str, ...]) -> dict[str, Any]:
    """All at once and only once: Hydra composes its own configuration with each call, which takes most of the time."""
    from hydra import compose
    from omegaconf import OmegaConf

    config = compose(overrides=[*(f"+mixer@{name}={name}" for name in names()), *search_path])
    return {str(name): OmegaConf.to_container(config[name], resolve=False) for name in config}


def _search_path() -> list[str]:
    """The running application's hydra.searchpath, as an override: Hydra keeps it for the application's own config."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    return [f"hydra.searchpath={[str(place) for place in HydraConfig.get().searchpath]}"]
