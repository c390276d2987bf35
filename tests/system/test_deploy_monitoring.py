"""deploy/monitoring: it asks /metrics for what is there."""
import json
import os
import re
import shutil
import subprocess
import unittest

import server
import tandem

try:
    import yaml
except ImportError:
    yaml = None

FOLDER = tandem.deploy("monitoring")
OF_PROMETHEUS = {"up"}  # what it adds itself: metrics, and labels of every target
LABELS_OF_PROMETHEUS = {"job", "instance", "le"}


def load(name):
    with open(os.path.join(FOLDER, name)) as file:
        return json.load(file) if name.endswith(".json") else yaml.safe_load(file)


def samples():
    """What a server says: {name: its labels}."""
    status, _, text = server.shared().ask("GET", "/metrics")
    assert status == 200, text
    found = {}
    for name, labels in re.findall(r"^([a-z]\S*?)(?:\{(.*)\})? \S+$", text, re.M):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def strange(expression, there):
    """What an expression names and nobody tells: metrics, then labels."""
    metrics = set(re.findall(r"\b(?:vllm|tandem):\w+|\bup\b", expression))
    labels = set(re.findall(r'(\w+)\s*(?:=~?|!=|!~)\s*"', expression))
    for group in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", expression):
        labels.update(group.replace(",", " ").split())
    told = set.union(LABELS_OF_PROMETHEUS, *(there.get(metric, set()) for metric in metrics))
    assert metrics, f"asks for nothing: {expression}"
    return sorted(metrics - there.keys() - OF_PROMETHEUS) + sorted(labels - told)


@unittest.skipUnless(yaml, "no PyYAML: tests/run makes .venv")
class Prometheus(unittest.TestCase):
    def test_it_reads_the_alerts_and_the_path_that_is_there(self):
        config = load("prometheus.yml")
        for name in config["rule_files"]:
            self.assertTrue(os.path.isfile(os.path.join(FOLDER, name)), name)
        for job in config["scrape_configs"]:
            self.assertEqual(server.shared().ask("GET", job["metrics_path"])[0], 200)

    def test_alerts_ask_for_what_is_there(self):
        there, jobs = samples(), {j["job_name"] for j in load("prometheus.yml")["scrape_configs"]}
        rules = [rule for group in load("alerts.yml")["groups"] for rule in group["rules"]]
        self.assertEqual(len({rule["alert"] for rule in rules}), len(rules))
        for rule in rules:
            with self.subTest(alert=rule["alert"]):
                self.assertLessEqual(rule.keys(), {"alert", "expr", "for", "labels", "annotations"})
                self.assertEqual(strange(rule["expr"], there), [])
                self.assertLessEqual(set(re.findall(r'job="(\w+)"', rule["expr"])), jobs)
                self.assertRegex(rule.get("for", "0s"), r"^\d+[sm]$")
                self.assertIn(rule["labels"]["severity"], ("critical", "warning"))
                self.assertTrue(rule["annotations"]["summary"])

    @unittest.skipUnless(shutil.which("promtool"), "no promtool on this machine")
    def test_promtool_accepts_both_files(self):
        subprocess.run(["promtool", "check", "config", os.path.join(FOLDER, "prometheus.yml")],
                       check=True)


class Dashboard(unittest.TestCase):
    def test_it_asks_for_what_is_there(self):
        there, dashboard = samples(), load("dashboard.json")
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        self.assertGreater(len(panels), 0)
        for panel in panels:
            for target in panel["targets"]:
                with self.subTest(panel=panel["title"]):
                    self.assertEqual(strange(target["expr"], there), [])
        variables = {variable["name"] for variable in dashboard["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard)))
        self.assertEqual(used - variables - {"__rate_interval", "__all"}, set())

    def test_its_panels_do_not_overlap(self):
        dashboard, taken = load("dashboard.json"), set()
        self.assertEqual(len({p["id"] for p in dashboard["panels"]}), len(dashboard["panels"]))
        for panel in dashboard["panels"]:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24)
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                     for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(taken & cells, panel["title"])
            taken |= cells


class TheTestItself(unittest.TestCase):
    def test_it_finds_a_name_and_a_label_that_nobody_tells(self):
        there = {"tandem:ranks": {"model_name"}}
        self.assertEqual(strange('tandem:rank{rank="1"}', there), ["tandem:rank", "rank"])
        self.assertEqual(strange("sum by (reason) (tandem:ranks)", there), ["reason"])
        self.assertEqual(strange("sum by (instance) (rate(tandem:ranks[1m]))", there), [])


if __name__ == "__main__":
    unittest.main()
