"""deploy/container: images that build, and answer.

Building takes minutes and a mirror of packages: TANDEM_TEST_IMAGE names a Debian 12 image that buildah has or can
pull, as in `TANDEM_TEST_IMAGE=docker.io/library/debian:bookworm-slim`; TANDEM_TEST_BUILDAH has options for it."""
import os
import re
import shutil
import subprocess
import unittest

import tandem

TOP = tandem.deploy("..")
BASE = os.environ.get("TANDEM_TEST_IMAGE")


class Files(unittest.TestCase):
    def test_they_copy_what_is_there(self):
        for name in os.listdir(tandem.deploy("container")):
            with open(os.path.join(tandem.deploy("container"), name)) as file:
                sources = re.findall(r"^COPY (?!--|\.cache/)(\S+) ", file.read(), re.M)
            self.assertGreater(len(sources), 0)
            for source in sources:
                self.assertTrue(os.path.exists(os.path.join(TOP, source)), f"{name}: {source}")


@unittest.skipUnless(BASE, "TANDEM_TEST_IMAGE names no image to build upon")
@unittest.skipUnless(shutil.which("buildah"), "no buildah on this machine")
class Image(unittest.TestCase):
    def buildah(self, *words):
        """Without daemon, namespaces or cgroups: it works in a container and in CI."""
        return subprocess.run(["buildah", *os.environ.get("TANDEM_TEST_BUILDAH", "").split(), *words],
                              check=True, stdout=subprocess.PIPE, text=True, cwd=TOP).stdout.strip()

    def test_it_answers_as_the_program_here(self):
        subprocess.run(["deploy/fetch-grammars"], check=True, cwd=TOP, stdout=subprocess.DEVNULL)
        self.buildah("build", "--isolation", "chroot", "--build-arg", "BASE=" + BASE, "--file",
                     "deploy/container/Containerfile.cpu", "--tag", "tandem-test", ".")
        self.addCleanup(self.buildah, "rmi", "tandem-test")
        model = tandem.make_tiny_model()
        os.chmod(os.path.dirname(model), 0o755)  # the image's user is not ours
        container = self.buildah("from", "tandem-test")
        self.addCleanup(self.buildah, "rm", container)
        words = ["generate", "--model", model, "--tp", "2", "--prompt", "hello", "--max-tokens", "8",
                 "--json"]
        out = self.buildah("run", "--isolation", "chroot", "--volume",
                           f"{os.path.dirname(model)}:{os.path.dirname(model)}:ro", container, "--",
                           "tandem", *words)
        self.assertEqual(out, tandem.run(*words)[1].strip())


if __name__ == "__main__":
    unittest.main()
