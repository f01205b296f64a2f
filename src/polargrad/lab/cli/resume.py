"""`polargrad resume`: continue what was stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from polargrad.lab.cli import report, terminal
from polargrad.lab.cli.arguments import Jobs, Parallelism, Positional
from polargrad.lab.options import given
from polargrad.lab.run import runner
from polargrad.lab.run.folder import COMPARISON, EXPERIMENT, PROTOCOL, read_settings
from polargrad.lab.train import terminal_progress


@dataclass(frozen=True, kw_only=True)
class Resume(Jobs):
    """Continue a run, comparison, protocol or matrix experiment that was stopped or killed, from its last checkpoint.

    Runs of a comparison that have ended are not repeated. A run may go on with another number of processes, and on
    another layout, than those it was begun with.

    Example: polargrad resume runs/monday

    Args:
        folder: a run, a comparison, a protocol or a matrix experiment
    """

    folder: Positional[Path]
    parallel: Parallelism = field(default_factory=Parallelism)

    def __call__(self) -> None:
        """Continue, then say how it ended and where it is."""
        if (self.folder / COMPARISON).is_file():
            from polargrad.lab.comparison.comparison import resume_comparison

            with self.parallel.processes() as parallel:
                if not parallel.is_single and (unused := given(self, "jobs", "threads")):
                    raise ValueError(f"{unused}: not with --parallel, where every process takes part in every run")
                if not parallel.is_main_process:
                    return runner.serve(parallel)
                how = {"jobs": self.jobs, "threads": self.threads, **report.narrated()}
                with self.cores(self.folder):
                    resume_comparison(self.folder, parallel=parallel, **how)
            return report.print_comparison(self.folder)
        if (self.folder / PROTOCOL).is_file():
            from polargrad.lab.comparison.protocol import resume_protocol

            self.parallel.refuse("a protocol")
            with self.cores(self.folder):
                resume_protocol(self.folder, jobs=self.jobs, threads=self.threads, **report.narrated())
            return report.print_protocol(self.folder)
        if (self.folder / EXPERIMENT).is_file():
            from polargrad.lab.studies.matrix.experiments import resume_experiment

            self.parallel.refuse("a matrix experiment")
            if unused := given(self, "threads"):
                raise ValueError(f"{unused}: a matrix experiment divides the cores among its jobs; leave it out")
            with terminal.idle_cores(self.folder):
                runs, page = resume_experiment(self.folder, jobs=self.jobs, progress=terminal_progress)
            return report.print_experiment(runs, page)
        if unused := given(self, "jobs", "threads"):
            raise ValueError(f"{unused}: {self.folder} is a single run; leave them out")
        with terminal.idle_cores(self.folder), self.parallel.processes() as parallel:
            if not parallel.is_main_process:
                return runner.serve(parallel)
            finished = runner.resume(self.folder, progress=terminal_progress(self.folder.name), parallel=parallel)
        (report.print_pretrained if read_settings(self.folder).page else report.print_run)(finished)
