"""deploy/kubernetes: manifests that Kubernetes would take, and whose command lines work.

No cluster: kustomize builds, published schemas judge, and the containers' commands run here."""
import copy
import os
import re
import shutil
import subprocess
import unittest

import deployed
import tandem

try:
    import jsonschema
    import kubernetes_validate
    import yaml
except ImportError:
    kubernetes_validate = None

VERSIONS = "1.32", "1.37"
OVERLAYS = "base", "overlays/cpu", "overlays/cuda"


def closed(properties, *required):
    """The schema of an object that has nothing else."""
    return {"type": "object", "additionalProperties": False, "properties": properties,
            "required": list(required)}


INTEGER_OR_PERCENT = {"type": ["integer", "string"]}
# What is not of Kubernetes itself: the envelopes alone, pods in them are judged as its own.
ENVELOPES = {
    "LeaderWorkerSet": closed({
        "apiVersion": {"const": "leaderworkerset.x-k8s.io/v1"}, "kind": {}, "metadata": {},
        "spec": closed({
            "replicas": {"type": "integer", "minimum": 0},
            "startupPolicy": {"enum": ["LeaderCreated", "LeaderReady"]},
            "networkConfig": closed({"subdomainPolicy": {"enum": ["Shared", "UniquePerReplica"]}}),
            "rolloutStrategy": closed({
                "type": {"const": "RollingUpdate"},
                "rollingUpdateConfiguration": closed({
                    "partition": {"type": "integer"}, "maxSurge": INTEGER_OR_PERCENT,
                    "maxUnavailable": INTEGER_OR_PERCENT})}, "type"),
            "leaderWorkerTemplate": closed({
                "size": {"type": "integer", "minimum": 1},
                "restartPolicy": {"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart",
                                           "None"]},
                "leaderTemplate": {"type": "object"}, "workerTemplate": {"type": "object"},
                "subGroupPolicy": {"type": "object"}}, "workerTemplate")}, "leaderWorkerTemplate")},
        "apiVersion", "metadata", "spec"),
    "PodMonitor": closed({
        "apiVersion": {"const": "monitoring.coreos.com/v1"}, "kind": {}, "metadata": {},
        "spec": closed({
            "selector": closed({"matchLabels": {"type": "object"}}, "matchLabels"),
            "podMetricsEndpoints": {"type": "array", "minItems": 1, "items": closed({
                "port": {"type": "string"}, "path": {"type": "string"},
                "interval": {"type": "string", "pattern": r"^\d+s$"},
                "authorization": closed({"credentials": closed({
                    "name": {"type": "string"}, "key": {"type": "string"}}, "name", "key")},
                    "credentials")}, "port")}}, "selector", "podMetricsEndpoints")},
        "apiVersion", "metadata", "spec"),
}


def build(overlay):
    done = subprocess.run(["kubectl", "kustomize", tandem.deploy("kubernetes/" + overlay)], check=True,
                          capture_output=True, text=True)
    return list(yaml.safe_load_all(done.stdout))


def the_one(documents, kind):
    found, = (document for document in documents if document["kind"] == kind)
    return found


def templates(documents):
    group = the_one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    return {"leader": group["leaderTemplate"], "rank": group["workerTemplate"]}


def judge(document):
    """Raises where an API server would refuse."""
    if document["kind"] in ENVELOPES:
        jsonschema.validate(document, ENVELOPES[document["kind"]])
        documents = []
        if document["kind"] == "LeaderWorkerSet":
            documents = [{"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name},
                          "template": template}
                         for name, template in templates([document]).items()]
    else:
        documents = [document]
    for each in documents:
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)


def selects(labels, template):
    """Does a selector mean these pods? The controller adds its own labels."""
    own = {"leaderworkerset.sigs.k8s.io/name": "tandem"}
    return labels.items() <= {**own, **template["metadata"]["labels"]}.items()


@unittest.skipUnless(kubernetes_validate, "no kubernetes-validate: tests/run makes .venv")
@unittest.skipUnless(shutil.which("kubectl"), "no kubectl on this machine")
class Manifests(unittest.TestCase):
    def test_kubernetes_knows_every_word(self):
        for documents in map(build, OVERLAYS):
            for document in documents:
                judge(document)
        with open(tandem.deploy("kubernetes/podmonitor.yaml")) as file:
            judge(yaml.safe_load(file))

    def test_a_word_that_it_does_not_know_is_refused(self):
        documents = build("base")
        for change in (lambda group: group.update(restartPolicy="Never"),
                       lambda group: group["leaderTemplate"]["spec"].update(hostPid=True)):
            wrong = copy.deepcopy(the_one(documents, "LeaderWorkerSet"))
            change(wrong["spec"]["leaderWorkerTemplate"])
            with self.assertRaises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
                judge(wrong)

    def test_pods_are_restricted_and_bounded(self):
        for documents in map(build, OVERLAYS):
            for template in templates(documents).values():
                pod = template["spec"]
                self.assertIs(pod["securityContext"]["runAsNonRoot"], True)
                self.assertEqual(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
                self.assertIs(pod["automountServiceAccountToken"], False)
                # Kubernetes would make TANDEM_PORT=tcp://… of the Service, and that is a setting.
                self.assertIs(pod["enableServiceLinks"], False)
                for container in pod["containers"]:
                    context = container["securityContext"]
                    self.assertIs(context["allowPrivilegeEscalation"], False)
                    self.assertIs(context["readOnlyRootFilesystem"], True)
                    self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                    self.assertIn("memory", container["resources"]["limits"])

    def test_names_that_it_uses_are_there(self):
        for documents in map(build, OVERLAYS):
            pods = templates(documents)
            for template in pods.values():
                pod = template["spec"]
                volumes = {volume["name"] for volume in pod["volumes"]}
                for container in pod["containers"]:
                    ports = {port["name"] for port in container.get("ports", [])}
                    self.assertLessEqual({mount["name"] for mount in container["volumeMounts"]}, volumes)
                    for probe in "startupProbe", "readinessProbe", "livenessProbe":
                        if probe in container:
                            self.assertIn(container[probe]["httpGet"]["port"], ports)
            service = the_one(documents, "Service")["spec"]
            self.assertTrue(selects(service["selector"], pods["leader"]))
            self.assertFalse(selects(service["selector"], pods["rank"]))
            for kind in "PodDisruptionBudget", "NetworkPolicy":
                found = [document["spec"] for document in documents if document["kind"] == kind]
                for template in pods.values():  # one each
                    self.assertEqual(len([spec for spec in found if selects(
                        spec.get("selector", spec.get("podSelector"))["matchLabels"], template)]), 1)

    def test_there_is_time_to_drain(self):
        for documents in map(build, OVERLAYS):
            pods = {name: template["spec"] for name, template in templates(documents).items()}
            engine, = pods["leader"]["containers"]
            env = {variable["name"]: variable.get("value") for variable in engine["env"]}
            pause, wait, answer = map(int, re.search(
                r"sleep (\d+); .* --wait (\d+) --timeout (\d+)", " ".join(
                    engine["lifecycle"]["preStop"]["exec"]["command"])).groups())
            self.assertLess(wait, answer)
            self.assertLess(pause + answer + int(env["TANDEM_DRAIN_TIMEOUT"]),
                            pods["leader"]["terminationGracePeriodSeconds"])
            self.assertLess(pods["leader"]["terminationGracePeriodSeconds"],
                            pods["rank"]["terminationGracePeriodSeconds"])

    def test_settings_are_those_of_the_program(self):
        engine = templates(build("base"))["leader"]["spec"]["containers"][0]
        status, known, _ = tandem.run("serve", "--help")
        self.assertEqual(status, 0)
        for variable in engine["env"]:
            if variable["name"].startswith("TANDEM_"):
                self.assertIn(" --" + variable["name"][len("TANDEM_"):].lower().replace("_", "-") + " ",
                              known)


@unittest.skipUnless(kubernetes_validate, "no kubernetes-validate: tests/run makes .venv")
@unittest.skipUnless(shutil.which("kubectl"), "no kubectl on this machine")
class Group(unittest.TestCase):
    """One replica of overlays/cpu, its containers' commands run as they stand but for paths and ports."""

    def setUp(self):
        self.address = deployed.free_address()
        self.run_dir = tandem.path("group")
        os.makedirs(self.run_dir, mode=0o700, exist_ok=True)
        self.pods = templates(build("overlays/cpu"))
        self.size = the_one(build("overlays/cpu"), "LeaderWorkerSet")["spec"][
            "leaderWorkerTemplate"]["size"]

    def here(self, word):
        """A word of the manifest, with the places of this machine."""
        for there, place in (("/models/model.gguf", deployed.model()), ("/run/tandem", self.run_dir),
                             ("/secret/token", deployed.token()),
                             ("sleep 5", "sleep 0"), (":7000", ":" + self.address.rsplit(":", 1)[1])):
            word = word.replace(there, place)
        return word

    def container(self, role, index):
        """(words, environment) of a container of pod `index` of the group."""
        container, = self.pods[role]["spec"]["containers"]
        env = {"LWS_GROUP_SIZE": str(self.size), "LWS_WORKER_INDEX": str(index),
               "LWS_LEADER_ADDRESS": "127.0.0.1", "POD_IP": "127.0.0.1",
               "TANDEM_API_KEY": "a key", "TANDEM_NUM_GPU_BLOCKS_OVERRIDE": "1024"}
        env |= {v["name"]: self.here(v["value"]) for v in container.get("env", []) if "value" in v}
        if "TANDEM_PORT" in env:
            env |= {"TANDEM_PORT": "0", "TANDEM_HOST": "127.0.0.1"}
        return [self.here(word) for word in container["command"] + container.get("args", [])], env

    def test_it_is_ready_with_its_ranks_answers_heals_and_drains(self):
        with deployed.Deployment(TANDEM_API_KEY="a key") as group:
            words, env = self.container("leader", 0)
            engine = group.start(*words, **env)
            ranks = []
            for index in range(1, self.size):
                words, rank_env = self.container("rank", index)
                ranks.append(group.start(*words, **rank_env))
            group.wait_until_ready()
            self.assertEqual(group.status_of("/health"), 200)

            group.ask()
            ranks[-1].kill()  # its container is started again
            self.assertNotEqual(ranks[-1].wait(), 0)
            ranks[-1] = group.start(*words, **rank_env)
            self.assertEqual(group.answer(), deployed.expected())

            drain = self.pods["leader"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]
            done = subprocess.run([self.here(word) for word in drain["command"]], capture_output=True, timeout=30, text=True,
                                  env={**os.environ, **group.env, **env})
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertNotEqual(group.status_of("/ready"), 200)
            self.assertEqual(deployed.end(engine, group), 0)
            self.assertEqual([rank.wait(tandem.within(1)) for rank in ranks], [0] * len(ranks))


if __name__ == "__main__":
    unittest.main()
