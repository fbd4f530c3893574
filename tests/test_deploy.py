"""What deploy/ starts exists: command lines, paths, probes and metrics are those of the package."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from softprompt.server import metrics
from softprompt.server.limits import Limits
from tests.end_to_end.test_readme import parse

DEPLOY = Path(__file__).parents[1] / "deploy"


def documents() -> Iterator[tuple[str, Any]]:
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield path.name, document


def pods() -> Iterator[Any]:
    yield from (one["spec"]["template"]["spec"] for _, one in documents() if "template" in one.get("spec", {}))


def commands() -> Iterator[str]:
    """Every command line that a container starts with."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    started = [one["command"] for one in compose["services"].values() if "command" in one]
    started += [container["args"] for pod in pods() for container in pod["containers"] if "args" in container]
    (default,) = re.findall(r"^CMD \[(.*)\]$", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    yield from (shlex.join(["softprompt", *words]) for words in [*started, re.findall(r'"([^"]*)"', default)])


@pytest.mark.parametrize("line", list(commands()))
def test_commands_are_ones_of_the_command_line(line: str) -> None:
    parse(line)


def test_what_the_image_copies_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)]
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name in (name for names in copied for name in names):
        assert (DEPLOY.parent / name).exists() and f"!{name}" in kept


def test_kubernetes_starts_unprivileged_containers_with_probes_that_exist() -> None:
    found = list(pods())
    assert len(found) == 3
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert (
                container["securityContext"]["allowPrivilegeEscalation"] is False and container["resources"]["limits"]
            )
    (server,) = [one for pod in found for one in pod["containers"] if one["name"] == "server"]
    assert {server[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")} == {
        "/livez",
        "/readyz",
    }


def test_the_metrics_that_scale_are_the_servers() -> None:
    scalers = [one["spec"] for _, one in documents() if one["kind"] == "HorizontalPodAutoscaler"]
    found = {scaler["scaleTargetRef"]["name"]: next(iter(scaler["metrics"][0].keys() - {"type"})) for scaler in scalers}
    assert found == {"server": "pods", "worker": "external"}
    names = [scaler["metrics"][0][found[scaler["scaleTargetRef"]["name"]]]["metric"]["name"] for scaler in scalers]
    requests, jobs = names
    assert f'"{requests.removeprefix("softprompt_")}"' in inspect.getsource(metrics)
    assert jobs == "softprompt_num_jobs_queued" and "num_jobs_{status}" in inspect.getsource(metrics)


def test_every_manifest_is_applied() -> None:
    (kustomization,) = [one for name, one in documents() if name == "kustomization.yaml"]
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there


def test_a_server_drains_before_it_is_killed() -> None:
    (server,) = [one for _, one in documents() if one["kind"] == "Deployment" and one["metadata"]["name"] == "server"]
    pod = server["spec"]["template"]["spec"]
    command, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + Limits().drain_s


def test_the_bucket_replaces_the_folder_of_soft_prompts() -> None:
    path = DEPLOY / "kubernetes" / "bucket" / "kustomization.yaml"
    overlay = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert overlay["resources"] == [".."]
    (patch,) = overlay["patches"]
    (server,) = [one for _, one in documents() if one["kind"] == patch["target"]["kind"] == "Deployment"][:1]
    assert server["metadata"]["name"] == patch["target"]["name"] == "server"
    place, environment = yaml.safe_load(patch["patch"])
    container = server["spec"]["template"]["spec"]["containers"][0]
    number = int(place["path"].removeprefix("/spec/template/spec/containers/0/args/"))
    assert container["args"][number - 1 : number + 1] == ["--prompts-dir", "/data/prompts"]
    container["args"][number] = place["value"]
    parse(shlex.join(["softprompt", *container["args"]]))
    assert environment["path"].endswith("/containers/0/envFrom") and "envFrom" not in container
