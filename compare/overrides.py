"""The overrides of a command line: what they may name, and which of them a run would ignore without a word."""

import re
from itertools import combinations

from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, ListConfig, OmegaConf

from compare import results

FACTS = ("name", "length", "max_length", "n_inputs", "n_outputs", "causal", "pool", "metric", "data")  # of a task
GROUPS = ("mixer", "mixers", "task", "model", "optimizer", "trainer", "logger")
ONLY_WITH = {"match_to": "match", "select_trials": "select", "selection_seeds": "select"}
HELP = """
    --cfg job         every value of the run, each of which KEY=VALUE overrides
    --hydra-help      Hydra's own flags
    -m                every combination of the values given as KEY=VALUE,VALUE

"""


def offers() -> str:
    """Every group and what it offers, plugged-in packages' own included. Hydra's own help takes twice as long."""
    with initialize_config_module("conf", version_base="1.3"):
        found = GlobalHydra.instance().config_loader().repository  # ty: ignore[missing-attribute]

        def groups(parent: str) -> list[str]:
            inner = (f"{parent}/{name}".strip("/") for name in found.get_group_options(parent, ObjectType.GROUP))
            return [name for group in inner if group != "hydra" for name in (group, *groups(group))]

        options = {group: found.get_group_options(group) for group in groups("")}
    return HELP + "\n".join(f"{group}: {', '.join(names)}" for group, names in options.items() if names)


def key_of(override: str) -> str:
    return override.lstrip("+~").split("=")[0]


def quoted(words: list[str]) -> list[str]:
    """The words, with the quotes that a shell has taken from a grid: its comma is no sweep of Hydra's."""
    return [re.sub(r"""^select=([^"'].*=.*)$""", r'select="\1"', word) for word in words]


def repeated(words: list[str]) -> list[str]:
    """The first overrides of one key, where there are several: Hydra would take the last without a word."""
    seen: dict[str, list[str]] = {}
    for word in words:
        if "=" in word and not word.startswith("-"):
            seen.setdefault(key_of(word), []).append(word)
    return next((same for same in seen.values() if len(same) > 1), [])


def resolvers() -> None:
    """For experiment=hybrid_map: every arrangement of k layers of a among n, as a sweep; and the pattern of one."""

    def arrangements(k: int, n: int) -> str:
        chosen = combinations(range(n), k)
        return ",".join(f"[{','.join('a' if i in places else 'b' for i in range(n))}]" for places in chosen)

    def arranged(layers: ListConfig, _parent_: DictConfig) -> ListConfig:
        return ListConfig([f"${{mixers.{layer}}}" for layer in layers], parent=_parent_)

    OmegaConf.register_new_resolver("arrangements", arrangements, replace=True)
    OmegaConf.register_new_resolver("arranged", arranged, replace=True)


def unused(cfg: DictConfig) -> None:
    """Raises ValueError for what a run would ignore without a word: a composed mixer that no pattern refers to, a key
    that nothing reads, a value that has no effect."""
    pattern = str(OmegaConf.to_container(cfg.model.backbone.pattern, resolve=False))
    composed = (["mixer"] if cfg.get("mixer") else []) + [f"mixers.{name}" for name in cfg.get("mixers", {})]
    for name in composed:
        if f"${{{name}}}" not in pattern:
            raise ValueError(f"{name} is composed but model.backbone.pattern={pattern} does not use it: name it there")
    text = OmegaConf.to_yaml(cfg) + OmegaConf.to_yaml(HydraConfig.get().sweeper)
    referred = {word for inside in re.findall(r"\$\{([^${}]*)", text) for word in re.split(r"[^\w.]+", inside)}
    own = {*OmegaConf.load(results.ROOT / "conf" / "train.yaml"), *GROUPS}
    for name in [*cfg, *(f"task.{name}" for name in cfg.task)]:
        known = name in own or name.removeprefix("task.") in FACTS
        if not known and not any(word == name or word.startswith(f"{name}.") for word in referred):
            raise ValueError(f"nothing reads {name}: leave it out")
    given = [key_of(word) for word in HydraConfig.get().overrides.task]
    for name, switch in ONLY_WITH.items():
        if name in given and not cfg[switch]:
            raise ValueError(f"{name} has no effect without {switch}=: set that, or leave {name} out")
    if "task.length" in given and "task.length" not in referred:
        raise ValueError(f"task.length has no effect: {cfg.task.name} gives its lengths in task.data")
