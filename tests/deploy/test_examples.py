"""The examples for Compose, Kubernetes and Nomad: each parses, fits its schema, and fits meshgate.

Neither a container engine, nor a Kubernetes, nor a Nomad is there to run them: what a schema cannot tell is compared
with what the product needs (settings that exist, probes that it answers, time enough to drain, no privileges).
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import hcl2
import kubernetes_validate
import pytest
import yaml

from meshgate.app.admin.admin_pages import admin_routes
from meshgate.app.settings.setting_table import BY_NAME
from meshgate.core.durations import parse_duration

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose"
KUBERNETES = DEPLOY / "kubernetes"
AGENTLESS = KUBERNETES / "consul-k8s"
NOMAD = DEPLOY / "nomad" / "meshgate.nomad.hcl"
# Kinds that Kubernetes itself does not define.
FOREIGN = {"Kustomization", "ServiceMonitor"}

DRAIN_SECONDS = parse_duration(BY_NAME["MESHGATE_DRAIN_TIMEOUT"].default_text())


def get_paths() -> set[str]:
    return {path for method, path in admin_routes(MagicMock(), MagicMock()) if method == "GET"}


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    return content


def agent_files(datacenter: str) -> list[Path]:
    """The files that the command of an agent of the Compose example names, in its order and as they are mounted."""
    service = compose()["services"][f"consul-{datacenter}"]
    mounted = {target: COMPOSE / source for source, target, _ in (each.split(":") for each in service["volumes"])}
    program, *flags = service["command"]
    assert program == "agent"
    return [mounted.pop(flag.removeprefix("-config-file=")) for flag in flags]


def manifests(*folders: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in folders or (KUBERNETES, KUBERNETES / "monitoring", AGENTLESS):
        for path in sorted(folder.glob("*.yaml")):
            for document in yaml.safe_load_all(path.read_text()):
                yield f"{path.relative_to(KUBERNETES)}:{document['kind']}", document


def manifest(kind: str, folder: Path = KUBERNETES) -> dict[str, Any]:
    (found,) = [document for _, document in manifests(folder) if document["kind"] == kind]
    return found


def plain(value: Any) -> Any:
    """What hcl2 read, without its quotes and marks."""
    if isinstance(value, Mapping):
        return {key.strip('"'): plain(each) for key, each in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.strip('"') if isinstance(value, str) else value


def settings_in(names: Iterator[str] | Mapping[str, object] | list[str]) -> set[str]:
    return {name for name in names if name.startswith(("MESHGATE_", "CONSUL_"))}


# --- Compose ---------------------------------------------------------------------------------------------------------


def test_compose_has_two_datacenters_with_a_gateway_each_that_knows_its_own_address() -> None:
    content = compose()
    services = content["services"]
    for datacenter in ("dc1", "dc2"):
        gateway, consul = services[f"gateway-{datacenter}"], services[f"consul-{datacenter}"]
        address = gateway["networks"]["mesh"]["ipv4_address"]
        assert gateway["environment"]["MESHGATE_ADDRESS"] == gateway["environment"]["MESHGATE_WAN_ADDRESS"]
        assert gateway["environment"]["MESHGATE_ADDRESS"] == f"{address}:8443"
        assert gateway["environment"]["CONSUL_HTTP_ADDR"] == f"http://consul-{datacenter}:8500"
        agent: dict[str, Any] = {}
        for path in agent_files(datacenter):
            agent |= plain(hcl2.loads(path.read_text()))
        assert agent["bind_addr"] == consul["networks"]["mesh"]["ipv4_address"]
        assert agent["datacenter"] == datacenter
        assert agent["acl"][0]["tokens"][0]["initial_management"] == content["x-tokens"]["MANAGEMENT_TOKEN"]


def test_compose_tokens_are_the_ones_that_setup_makes() -> None:
    content = compose()
    services, tokens = content["services"], content["x-tokens"]
    assert services["gateway-dc1"]["environment"]["CONSUL_HTTP_TOKEN"] == tokens["GATEWAY_TOKEN"]
    assert services["web-sidecar"]["environment"]["CONSUL_HTTP_TOKEN"] == tokens["SERVICE_TOKEN"]
    assert tokens["SERVICE_TOKEN"] in (COMPOSE / "compose.yaml").read_text().partition("name: meshgate")[0]
    wanted = set(re.findall(r"^#   ([A-Z_0-9, ]+?)  ", (COMPOSE / "setup.sh").read_text(), re.MULTILINE))
    names = {name.strip() for group in wanted for name in group.split(",")}
    assert names <= set(services["setup"]["environment"])
    assert services["setup"]["environment"]["WEB_ADDRESS"] == services["web"]["networks"]["mesh"]["ipv4_address"]


def test_compose_gateways_use_settings_that_exist_have_time_to_drain_and_no_privileges() -> None:
    for name, service in compose()["services"].items():
        if not name.startswith("gateway-"):
            continue
        assert settings_in(service["environment"]) <= set(BY_NAME)
        assert parse_duration(service["stop_grace_period"]) >= DRAIN_SECONDS + 10
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        # The page is for this machine alone.
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert (COMPOSE / service["build"]["context"] / service["build"]["dockerfile"]).resolve().exists()


def test_compose_mounts_what_exists_and_waits_for_what_it_needs() -> None:
    services = compose()["services"]
    for service in services.values():
        for volume in service.get("volumes", ()):
            source, target, mode = volume.split(":")
            assert (COMPOSE / source).resolve().is_file()
            assert mode == "ro"
            assert Path(target).name == Path(source).name
        assert set(service.get("depends_on", ())) <= set(services)


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "document"), list(manifests()), ids=lambda value: value if type(value) is str else "")
def test_manifest_fits_the_schema_of_kubernetes(name: str, document: dict[str, Any]) -> None:
    if document["kind"] in FOREIGN:
        assert document["apiVersion"].count("/") == 1
        return
    kubernetes_validate.validate(document, "1.32", strict=True)


@pytest.mark.parametrize(("folder", "namespace"), [(KUBERNETES, "meshgate"), (AGENTLESS, "consul")])
def test_kustomize_puts_all_of_it_together(folder: Path, namespace: str) -> None:
    listed = manifest("Kustomization", folder)["resources"]
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml")
    if (kubectl := shutil.which("kubectl")) is None:
        return
    built = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout
    documents = list(yaml.safe_load_all(built))
    assert {document["metadata"]["namespace"] for document in documents} == {namespace}
    (deployment,) = [document for document in documents if document["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    made = [document["metadata"]["name"] for document in documents if document["kind"] == "ConfigMap"]
    assert container["envFrom"][0]["configMapRef"]["name"] in made


def pod(folder: Path = KUBERNETES) -> dict[str, Any]:
    spec: dict[str, Any] = manifest("Deployment", folder)["spec"]["template"]["spec"]
    return spec


def settings_env(folder: Path = KUBERNETES) -> dict[str, str]:
    lines = (folder / "settings.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment(folder: Path) -> dict[str, str]:
    """What the gateway of a folder gets; what is asked of Kubernetes is empty."""
    (gateway,) = pod(folder)["containers"]
    return settings_env(folder) | {each["name"]: each.get("value", "") for each in gateway["env"]}


@pytest.mark.parametrize("folder", [KUBERNETES, AGENTLESS])
def test_pod_asks_the_probes_that_the_gateway_answers_and_drains_before_it_ends(folder: Path) -> None:
    (gateway,) = pod(folder)["containers"]
    ports = {port["name"]: port["containerPort"] for port in gateway["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert gateway[probe]["httpGet"]["path"] in get_paths()
        assert gateway[probe]["httpGet"]["port"] in ports
    assert gateway["lifecycle"]["preStop"]["exec"]["command"] == ["meshgate", "drain"]
    given = environment(folder)
    assert pod(folder)["terminationGracePeriodSeconds"] >= parse_duration(given["MESHGATE_DRAIN_TIMEOUT"]) + 10
    assert given["MESHGATE_ADDRESS"].endswith(f":{ports['mesh']}")
    assert given["MESHGATE_ADMIN_BIND"].endswith(f":{ports['admin']}")
    assert settings_in(given) <= set(BY_NAME)


def test_the_agent_of_the_pod_outlives_the_gateway() -> None:
    (agent,) = pod()["initContainers"]
    assert agent["restartPolicy"] == "Always"
    assert plain(hcl2.loads((KUBERNETES / "agent.hcl").read_text()))["client_addr"] == "127.0.0.1"


@pytest.mark.parametrize("folder", [KUBERNETES, AGENTLESS])
def test_pod_has_no_privileges_and_writes_to_its_volumes_alone(folder: Path) -> None:
    spec = pod(folder)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    containers = (*spec.get("initContainers", ()), *spec["containers"])
    for container in containers:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for each in containers for mount in each["volumeMounts"]} == volumes


@pytest.mark.parametrize("folder", [KUBERNETES, AGENTLESS])
def test_everything_selects_the_gateways(folder: Path) -> None:
    deployment = manifest("Deployment", folder)
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert labels.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    for _, document in manifests(folder):
        spec = document.get("spec", {})
        match document["kind"]:
            case "Service":
                assert spec["selector"] == labels
            case "PodDisruptionBudget":
                assert spec["selector"]["matchLabels"] == labels
            case "NetworkPolicy":
                assert spec["podSelector"]["matchLabels"] == labels
            case "HorizontalPodAutoscaler":
                assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (admin,) = [it for _, it in manifests(folder) if it.get("metadata", {}).get("name") == "meshgate-admin"]
    monitor = manifest("ServiceMonitor", KUBERNETES / "monitoring")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= admin["metadata"]["labels"].items()
    assert {endpoint["path"] for endpoint in monitor["endpoints"]} <= get_paths()


def test_pod_without_an_agent_is_registered_by_consul_k8s_under_the_names_that_the_gateway_looks_for() -> None:
    template = manifest("Deployment", AGENTLESS)["spec"]["template"]
    consul = "consul.hashicorp.com/"
    notes, labels = template["metadata"]["annotations"], template["metadata"]["labels"]
    given = environment(AGENTLESS)
    assert labels[f"{consul}connect-inject-managed-by"] == "consul-k8s-endpoints-controller"
    assert notes[f"{consul}gateway-kind"] == "mesh-gateway"
    assert notes[f"{consul}gateway-consul-service-name"] == given["MESHGATE_SERVICE"]
    # consul-k8s: the ID is the pod's name, the node that of Kubernetes with an ending.
    assert (given["MESHGATE_PROXY_ID"], given["MESHGATE_NODE_NAME"]) == ("$(POD_NAME)", "$(NODE_NAME)-virtual")
    assert given["MESHGATE_REGISTER"] == "false"
    (gateway,) = template["spec"]["containers"]
    ports = {port["name"]: str(port["containerPort"]) for port in gateway["ports"]}
    assert notes[f"{consul}mesh-gateway-container-port"] == ports["mesh"]
    services = {it["metadata"]["name"]: it for _, it in manifests(AGENTLESS) if it["kind"] == "Service"}
    # One of the services is registered, with its own port for the WAN; the other one must not be.
    (mesh,) = services["meshgate"]["spec"]["ports"]
    assert notes[f"{consul}gateway-wan-port"] == str(mesh["port"])
    assert services["meshgate-admin"]["metadata"]["labels"][f"{consul}service-ignore"] == "true"
    mounts = {mount["name"]: mount["mountPath"] for mount in gateway["volumeMounts"]}
    assert given["CONSUL_CACERT"] == f"{mounts['consul-ca-cert']}/tls.crt"
    assert given["MESHGATE_LOGIN_BEARER_TOKEN_FILE"] == f"{mounts['login']}/token"


# --- Nomad -----------------------------------------------------------------------------------------------------------


def test_nomad_job_drains_in_time_checks_what_answers_and_uses_settings_that_exist() -> None:
    (job,) = plain(hcl2.loads(NOMAD.read_text()))["job"]
    (group,) = job["meshgate"]["group"]
    gateway = group["gateway"]
    (task,) = gateway["task"]
    meshgate = task["meshgate"]
    assert meshgate["kill_signal"] == "SIGTERM"
    assert parse_duration(meshgate["kill_timeout"]) >= DRAIN_SECONDS + 10
    (environment,) = meshgate["env"]
    assert settings_in(environment) <= set(BY_NAME)
    assert "CONSUL_HTTP_TOKEN" not in environment
    (network,) = gateway["network"]
    ports = {name: port for each in network["port"] for name, port in each.items()}
    assert environment["MESHGATE_ADDRESS"].endswith("${NOMAD_PORT_mesh}")
    assert ports["mesh"]["static"] == 8443
    (service,) = gateway["service"]
    (check,) = service["check"]
    assert service["port"] in ports
    assert check["path"] in get_paths()
    (config,) = meshgate["config"]
    assert (config["cap_drop"], config["readonly_rootfs"]) == (["all"], True)
