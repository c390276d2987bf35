"""deploy/slurm, in a small Slurm of this machine: jobs answer as one process does, heal, and end in order."""
import re
import time
import unittest

import deployed
import slurm_mini
import tandem
from server import wait_for

AS_JOB = ("--parsable", "--export=ALL")


@unittest.skipIf(slurm_mini.missing(), slurm_mini.missing())
class Job(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.slurm = slurm_mini.SlurmMini(nodes=3, cpus=2)
        cls.addClassCleanup(cls.slurm.stop)

    def submit(self, deployment, script, *options):
        job = int(self.slurm.run("sbatch", *AS_JOB, f"--output={deployment.log_path}", *options,
                                 tandem.deploy("slurm/" + script), "--model", deployed.model(),
                                 "--port", "0", env=deployment.env, cwd=tandem.path(".")))
        def check():
            time.sleep(0.2)  # Slurm need not be asked more often
            state = self.slurm.job_state(job)
            assert state.get("JobState") in ("PENDING", "CONFIGURING", "RUNNING"), state
        deployment.check = check
        return job

    def answers_heals_and_ends(self, deployment, job):
        try:
            deployment.wait_until_ready()
            before = deployment.ranks()
            self.assertEqual(len(before), 2)
            deployment.ask()
            deployment.kill_a_rank()
            self.assertEqual(deployment.answer(), deployed.expected())
            after = deployment.ranks()
            self.slurm.run("scancel", "--signal=TERM", "--batch", str(job))
            wait_for("the end of the job", lambda: self.slurm.job_state(job).get("JobState") not in
                     ("RUNNING", "COMPLETING"), 20)
            deployment.wait_until_gone()
            self.assertEqual(self.slurm.job_state(job), {"JobState": "COMPLETED", "ExitCode": "0:0"})
            return before, after
        except BaseException:
            print(self.slurm.logs())
            raise
        finally:
            self.slurm.run("scancel", str(job), check=False)

    def test_launched_ranks_answer_and_only_the_dead_one_is_started_again(self):
        with deployed.Deployment() as deployment:
            job = self.submit(deployment, "tandem.sbatch", "--nodes=2", "--ntasks-per-node=1")
            before, after = self.answers_heals_and_ends(deployment, job)
            self.assertEqual(len(set(before) & set(after)), 1)

    def test_a_heterogeneous_job_answers_and_starts_its_step_again(self):
        with deployed.Deployment() as deployment:
            job = self.submit(deployment, "tandem-het.sbatch", "--ntasks=1", "--cpus-per-task=1", ":",
                              "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
            before, after = self.answers_heals_and_ends(deployment, job)
            self.assertFalse(set(before) & set(after))

    def test_the_agent_runs_a_command_on_a_host_and_tells_how_it_ended(self):
        agent = tandem.deploy("slurm/srun-rsh")
        out = self.slurm.run("salloc", "--nodelist=n1,n2", "--ntasks-per-node=2", "--cpus-per-task=1",
                             "bash", "-c",
                             f"for host in n1 n2 n3; do {agent} $host 'echo $SLURMD_NODENAME $(nproc); "
                             f"exit 7'; echo $?; done")
        hosts = re.findall(r"^(n\d) (\d)\n7$", out, re.M)
        self.assertEqual(hosts, [("n1", "2"), ("n2", "2")], out)  # and n3 is not of the job
        self.assertNotIn("n3 ", out)


if __name__ == "__main__":
    unittest.main()
