"""One run; with -m many runs, then their comparison.

    python train.py mixer=gla task=recall seed=0
    python train.py -m mixer=softmax,gla task=recall seed=0,1,2

Only what composing a configuration needs is imported at the top, so that --help and typing errors answer at once.
"""

import logging
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from compare import identity, overrides

log = logging.getLogger(__name__)


def main() -> None:
    sys.argv = overrides.quoted(sys.argv)
    if {"--help", "-h"} & set(sys.argv):
        return print(f"{__doc__.rsplit(chr(10) * 2, 1)[0]}\n{overrides.offers()}")
    if twice := overrides.repeated(sys.argv[1:]):
        sys.exit(f"error: {' and '.join(twice)} say the same thing twice: leave one out")
    overrides.resolvers()
    try:
        job()
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from where its runs are")


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(cfg: DictConfig) -> None:
    from compare import plan  # here, where the configuration is composed

    overrides.resolvers()  # in a process that a launcher started, main() did not run
    record: dict = {}
    try:
        cfg.label = identity.label()
        record = identity.described(cfg)
        identity.writable(cfg.runs)
        overrides.unused(cfg)
        settled = plan.settle(cfg, run)
        record = run(cfg, identity.described(cfg) | settled, identity.place(cfg))
        if cfg.aa and record["outcome"] == "finished":
            record = plan.twin(cfg, record, run)
    except (ValueError, OSError) as error:
        if not record.get("sweep"):
            sys.exit(f"error: {error}")
        # In a sweep nothing raises, or Hydra would not compare the others; the comparison says what became of this one.
        log.error("error: %s", error)
        return identity.write_failed(cfg, record, str(error))
    if record["outcome"] == "interrupted" and record["sweep"]:
        raise KeyboardInterrupt  # the whole sweep was meant, and not this run alone
    if record["outcome"] != "finished" and not record["sweep"]:
        sys.exit(f"{record['outcome']}: {record['reason']}")


def run(cfg: DictConfig, record: dict, directory: Path) -> dict:
    """Trains, tests and records one run, unless that has been done. Raises ValueError or OSError where it cannot."""
    directory.mkdir(parents=True, exist_ok=True)
    if earlier := identity.done(record, directory):
        log.info("%s is already done: remove it to run again", directory)
        return earlier
    from compare.run import carry_out  # torch, lightning, wandb: seconds

    return carry_out(cfg, directory, record)


if __name__ == "__main__":
    main()
