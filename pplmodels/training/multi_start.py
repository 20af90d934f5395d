"""Short training runs from several seeds, of which the best is continued."""

from collections.abc import Callable, Iterable

from pplmodels import distributed
from pplmodels.errors import InputError
from pplmodels.io import read_json, write_json
from pplmodels.messages import say
from pplmodels.training.checkpoint import has_checkpoint
from pplmodels.training.run import Run


def best_of_seeds(run: Run, seeds: Iterable[int], begin: Callable[[Run, int, bool], object]) -> int:
    """Train from each seed for a few steps, and copy the checkpoint and metrics of the best into ``run``.

    Returns the best seed. ``begin(start, seed, resume)`` takes the first steps in a run folder of its own; with
    ``resume`` it continues from the checkpoint in that folder. A start is a success if its last evaluation has no
    ``warning``, e.g. of a collapse, after which a bound can still be high. The best is the success with the highest
    last ``train_elbo``, or the start with the highest one if there is none. The comparison is written to starts.json.
    """
    report = run.folder / "starts.json"
    seeds = list(seeds)
    if report.exists():
        otherwise = f"{report} does not name one of the seeds {', '.join(map(str, seeds))} as the best."
        match read_json(report, otherwise):
            case {"kept": int(kept)} if kept in seeds:
                return kept
        raise InputError(otherwise)
    starts = []
    for seed in seeds:
        start = run.within(f"starts/{seed}", seed=seed)
        begin(start, seed, has_checkpoint(start.folder))
        start.close()
        last = {"train_elbo": None, **(start.metrics or [{}])[-1]}
        if last["train_elbo"] is None:
            raise InputError(f"the metrics of {start.folder}, the restart with seed {seed}, have no train_elbo.")
        starts.append({"seed": seed, "train_elbo": last["train_elbo"], "warning": last.get("warning")})
        say(f"seed {seed}: ELBO {last['train_elbo']:.1f}, {last.get('warning', 'no warning')}")
    kept = max(starts, key=lambda start: (start["warning"] is None, start["train_elbo"]))["seed"]
    rate = sum(start["warning"] is None for start in starts) / len(starts)
    say(f"{rate:.0%} of {len(starts)} restarts have no warning; training continues with seed {kept}")
    run.take_over(run.folder / "starts" / str(kept))
    if distributed.rank() == 0:
        write_json(report, {"kept": kept, "success_rate": rate, "starts": starts})
    distributed.barrier()
    return kept
