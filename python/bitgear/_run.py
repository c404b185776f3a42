"""Finished runs, and what starts from one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import _native
from ._html import table
from ._runner import Runner
from ._trace import Trace
from ._types import Labels, ModelLike, Samples, StrPath, model_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILES = ("summary.json", "policy.json", "model.bitgear", "trace.parquet", "splits.json")
REPORT = "report.html"


class Run:
    """What a characterization found: `summary.json`, `policy.json` and the other files of a folder."""

    path: Path
    """The run's folder."""

    def __init__(
        self,
        path: StrPath,
        *,
        _temporary: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.path = Path(path)
        # Removed with the last reference.
        self._temporary = _temporary
        for name in FILES:
            if not (self.path / name).is_file():
                raise _native.Error(
                    f"`{self.path}` is no finished run: expected a file `{name}`\n"
                    "hint: give the folder that a run wrote to; one that was ended continues with `out`"
                )

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise _native.Error(f"`{path}` is damaged: {error}") from error
        return found

    @cached_property
    def summary(self) -> dict[str, Any]:
        """All figures, of the test split: what is in `summary.json`. Accuracies and drops are fractions,
        energies microjoule per inference."""
        return self._json("summary.json")

    @cached_property
    def policy(self) -> dict[str, Any]:
        """Stages and thresholds: what is in `policy.json`."""
        return self._json("policy.json")

    @cached_property
    def trace(self) -> Trace:
        """What every evaluated sample did at every operating point."""
        return Trace.read(self.path / "trace.parquet")

    @property
    def bundle(self) -> Path:
        """The file to deploy: networks and policy."""
        return self.path / "model.bitgear"

    @property
    def report(self) -> Path:
        """The page for people, which may be missing: it can be made from the other files."""
        return self.path / REPORT

    def runner(self, threads: int | None = None, policy: str = "main") -> Runner:
        """A policy, ready to run on so many threads, by default all processors. Those of `also_max_drop`
        are called `max-drop-` and their target."""
        return Runner(self.bundle, threads=threads, policy=policy)

    def save(self, path: StrPath) -> Run:
        """Copy the run's files into a folder, which is made where it is missing, and give the run
        there."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        if folder.resolve() != self.path.resolve():
            others = [REPORT, *(path.name for path in self.path.glob("policy-*.json"))]
            for name in [*FILES, *(name for name in others if (self.path / name).is_file())]:
                shutil.copyfile(self.path / name, folder / name)
        return Run(folder)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw accuracy (percent, test split) against chip energy of the static points, the policy, and those
        for other targets. Points that lose much more than these are left out.

        Needs matplotlib. Draws on `ax`, by default the current axes, and returns it.
        """
        try:
            from matplotlib import pyplot, ticker
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'bitgear[plot]'") from error
        ax = pyplot.gca() if ax is None else ax
        summary, policy = self.summary, self.summary["policy"]
        reference = 100 * summary["reference"]["accuracy"]
        front = [option["policy"] for option in summary.get("frontier", [])]
        # As the report does: what loses far more than anybody would choose leaves no room for the rest.
        lost = [reference - 100 * option["accuracy"] for option in [*front, policy]]
        floor = reference - 1.2 * max(*lost, 1.0)
        for kind, marker in (("uniform", "o"), ("mixed", "D"), ("plain", "s")):
            points = [p for p in summary["static"] if p["kind"] == kind and p["view"] == "as-is"]
            shown = [_place(p) for p in points if 100 * p["accuracy"] >= floor]
            if shown:
                fill = "none" if kind == "plain" else "grey"
                name = f"static, {kind}"
                ax.scatter(*zip(*shown), marker=marker, facecolors=fill, edgecolors="grey", label=name)
        if front:
            places = sorted(_place(option) for option in front)
            ax.plot(*zip(*places), marker=".", label="policies for other targets")
        ax.scatter(*_place(policy), marker="*", s=180, color="tab:red", label="policy", zorder=3)
        ax.axhline(reference, color="grey", linewidth=0.8, linestyle="--", label="float")
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
        ax.set_xlabel(f"chip energy of an inference ({summary['cost_unit']})")
        ax.set_ylabel("accuracy (%)")
        ax.set_title(f"{summary['model']['name']} on {summary['accelerator']}")
        ax.legend()
        return ax

    def _rows(self) -> list[tuple[str, str, float, float]]:
        """Name, point, accuracy and chip energy of what people compare."""
        summary, policy = self.summary, self.summary["policy"]
        stages = [*policy["stages"], policy["last_resort"]]
        name = " > ".join(stage["point"] + _view(stage["view"]) for stage in stages)
        rows = [("policy", name, policy["accuracy"], policy["energy_uj"]["chip"])]
        for key in ("best_static", "best_static_uniform", "best_static_plain"):
            best = summary[key]
            rows.append(
                (key.replace("_", " "), best["point"], best["accuracy"], best["energy_uj"]["chip"])
            )
        return rows

    def __repr__(self) -> str:
        summary, (_, name, accuracy, energy) = self.summary, self._rows()[0]
        return (
            f"<bitgear.Run {summary['model']['name']} on {summary['accelerator']}: {name}, "
            f"{accuracy:.2%} accurate at {energy:.3f} {summary['cost_unit']} "
            f"({_saving(summary)})>"
        )

    def _repr_html_(self) -> str:
        summary = self.summary
        reference = summary["reference"]["accuracy"]
        head = ("", "operating points", "accuracy", "difference", f"chip {summary['cost_unit']}")
        rows = [
            (name, point, f"{accuracy:.2%}", f"{100 * (accuracy - reference):+.2f}", f"{energy:.3f}")
            for name, point, accuracy, energy in self._rows()
        ]
        caption = (
            f"{summary['model']['name']} on {summary['accelerator']}, {summary['samples']['test']} test "
            f"samples, float {reference:.2%}: {_saving(summary)}"
        )
        return table(caption, head, rows)


def _saving(summary: dict[str, Any]) -> str:
    saved = summary["savings"]
    best, uniform = saved["vs_best_static"], saved["vs_best_static_uniform"]
    return f"{best:.1%} saved against the best static point, {uniform:.1%} against the best uniform one"


def _place(figures: dict[str, Any]) -> tuple[float, float]:
    """Chip energy and accuracy in percent."""
    return figures["energy_uj"]["chip"], 100 * figures["accuracy"]


def _view(view: str) -> str:
    return "" if view == "as-is" else f"@{view}"


def load(path: StrPath) -> Run:
    """Read the folder of a finished run, of Python or of the command line.

    Raises `Error` when the folder holds none.
    """
    return Run(path)


def compare(
    run: Run,
    model: ModelLike,
    accelerators: Sequence[StrPath] | None = None,
    *,
    threads: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Choose a policy for each accelerator from the trace of one run; the model is not run again.

    `accelerators` are ids or files, by default all profiles that ship. Returns what would be in each
    `summary.json`, by id, and `{"error": …}` for one that can't price the run's points. Each profile
    chooses among the points that were traced, which were picked for the run's own.
    """
    wanted = [name for name, *_ in _native.profiles()] if accelerators is None else accelerators
    with model_file(model) as path:
        found = _native.compare(run.path, path, [str(name) for name in wanted], threads)
    return {name: json.loads(summary) for name, summary in found}


def certify(
    bundle: StrPath | Run,
    model: ModelLike,
    x: Samples,
    y: Labels | None = None,
    *,
    guarantee: float | None = None,
    confidence: float = 0.95,
    test: Literal["exact", "betting", "binomial", "conformal"] = "exact",
    threads: int | None = None,
) -> dict[str, Any]:
    """Bound what a policy loses against its float model, on new samples.

    `x` and `y` are as in `characterize`; without labels, disagreement with the float model is bounded.
    Of a policy for a class mix, the samples that count are the most whose classes are mixed like that.
    `guarantee` is the drop to prove, by default the certificate's, on samples that it was not made from.
    Returns `accuracy_drop`, `drop_upper_bound`, `proved`, `flips` and more, as fractions and counts.
    """
    path = bundle.bundle if isinstance(bundle, Run) else Path(bundle)
    with model_file(model) as file:
        found = _native.certify(path, file, x, y, guarantee, confidence, test, threads)
    result: dict[str, Any] = json.loads(found)
    return result
