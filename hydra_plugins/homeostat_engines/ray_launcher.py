"""``hydra/launcher=ray``: every job of a sweep is a task of a Ray cluster, or of this machine.

Ray gives a task as many processors and GPUs as ``hydra.launcher.task`` asks for: it sets
``CUDA_VISIBLE_DEVICES`` and the number of threads of each task itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

MISSING = 'hydra/launcher=ray needs Ray: pip install "homeostat[ray]".'


class RayLauncher(Launcher):
    """Launches the jobs of a batch at once; Ray queues what there is no room for."""

    def __init__(self, init: DictConfig, task: DictConfig) -> None:
        """What Ray is told.

        Args:
            init: Arguments of ``ray.init``: ``address`` of a cluster, or ``num_cpus`` of this
                machine.
            task: Options of every task: ``num_cpus``, ``num_gpus``.
        """
        self.init, self.task = init, task

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """See `hydra.plugins.launcher.Launcher`."""
        self.context, self.function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Do the jobs; one whose worker dies has failed, and the others go on.

        Args:
            job_overrides: Of each job.
            initial_job_idx: The number of the first.

        Raises:
            ValueError: Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise ValueError(MISSING) from error
        setup_globals()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        if not (running := ray.is_initialized()):
            ray.init(**_plain(self.init))
        task = ray.remote(**_plain(self.task), max_retries=0)(do_job)
        state = Singleton.get_state()
        numbered = enumerate(job_overrides, initial_job_idx)
        pending = [
            task.remote(
                number,
                list(overrides),
                self.context,
                self.config,
                self.function,
                state,
                os.getcwd(),
            )
            for number, overrides in numbered
        ]
        try:
            return [self._result(ray, one) for one in pending]
        finally:
            if not running:
                ray.shutdown()  # or what it has started holds this process's output open

    def _result(self, ray: Any, pending: Any) -> JobReturn:
        try:
            done: JobReturn = ray.get(pending)
        except ray.exceptions.RayError as error:
            done = JobReturn(status=JobStatus.FAILED)
            done.return_value = error
        return done


def do_job(
    number: int,
    overrides: list[str],
    context: HydraContext,
    config: DictConfig,
    function: TaskFunction,
    state: Mapping[Any, Any],
    cwd: str,
) -> JobReturn:
    """One job, in a process of its own that knows nothing yet.

    Args:
        number: Of the job.
        overrides: Of the job.
        context: Hydra's, which loads the job's config.
        config: Of the sweep.
        function: That does a job.
        state: Hydra's singletons as they are where the sweep was started.
        cwd: Where it was started, which relative folders go from; on a cluster every node has it.
    """
    os.chdir(cwd)
    setup_globals()
    Singleton.set_state(state)
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.id, job.hydra.job.num = f"{job.hydra.job.name}_{number}", number
    HydraConfig.instance().set_config(job)
    return run_job(
        task_function=function,
        config=job,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
    )


def _plain(options: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(options, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if value is not None}
